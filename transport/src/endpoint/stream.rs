//! The stream that a handshake runs over, before there is a wire: TCP, Unix or in-process.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::mem::MemLink;

/// Descriptors that one message may carry.
pub(crate) const DESCRIPTORS_MAX: usize = 2;

pub(crate) enum Stream {
    Mem(MemLink),
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// In-process streams have nothing to register: their peers wake the endpoint.
impl Source for Stream {
    fn register(&mut self, to: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            Self::Mem(_) => Ok(()),
            Self::Unix(stream) => stream.register(to, token, interest),
            Self::Tcp(stream) => stream.register(to, token, interest),
        }
    }

    fn reregister(&mut self, at: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            Self::Mem(_) => Ok(()),
            Self::Unix(stream) => stream.reregister(at, token, interest),
            Self::Tcp(stream) => stream.reregister(at, token, interest),
        }
    }

    fn deregister(&mut self, from: &Registry) -> io::Result<()> {
        match self {
            Self::Mem(_) => Ok(()),
            Self::Unix(stream) => stream.deregister(from),
            Self::Tcp(stream) => stream.deregister(from),
        }
    }
}

impl Stream {
    /// Reads bytes, and descriptors that came with them. Zero bytes are the end.
    pub(crate) fn read(&mut self, into: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
        match self {
            Self::Mem(link) => link.boot_read(into),
            Self::Tcp(stream) => stream.read(into),
            Self::Unix(stream) => {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let parts = &mut [IoSliceMut::new(into)];
                let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
                let message = recvmsg(stream.as_fd(), parts, &mut control, flags)?;
                for ancillary in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
                        fds.extend(rights);
                    }
                }
                Ok(message.bytes)
            }
        }
    }

    /// Writes bytes, and descriptors with the first of them.
    pub(crate) fn write(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        match self {
            Self::Mem(link) => link.boot_write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) if fds.is_empty() => stream.write(bytes),
            Self::Unix(stream) => {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !control.push(SendAncillaryMessage::ScmRights(fds)) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                Ok(sendmsg(
                    stream.as_fd(),
                    &[IoSlice::new(bytes)],
                    &mut control,
                    flags,
                )?)
            }
        }
    }
}

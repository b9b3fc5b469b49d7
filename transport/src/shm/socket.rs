//! What goes over a channel's Unix socket once the channel is open: doorbells, and questions about
//! memory that answer by descriptors.
//!
//! ```text
//!   receiver of a large message              sender        initiator                       owner
//!     | FileWanted { file } ---------------->  |             | RegionWanted { key } ------->  |
//!     | <-- File { file, bytes } + descriptor  |             | <------ Voids { } + descriptor |
//!     |     or FileGone { file }               |             | <--- Region { .. } + descriptor|
//!     | AttachRefused ---------------------->  |             |      or RegionRefused { key }  |
//! ```
//!
//! Each message begins with its kind and has the length of its kind; a descriptor comes with the
//! first byte of its message, and one message has at most one.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mio::net::UnixStream;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use smallvec::SmallVec;

use crate::one_sided::Access;
use crate::wire::WireError;

/// Bytes of the longest message.
const MESSAGE_BYTES_MAX: usize = 64;
/// Bytes that are read at once.
const READ_BYTES: usize = 512;
/// Descriptors that may wait for their messages: a message that was cut off by the end of what is
/// read at once has its own already, and what is read next ends with the next one's.
const DESCRIPTORS_MAX: usize = 2;
/// Messages of ours that wait for a peer which does not read.
const WAITING_MAX: usize = 256;

const RING: u8 = 1;
const FILE_WANTED: u8 = 2;
const FILE: u8 = 3;
const FILE_GONE: u8 = 4;
const REGION_WANTED: u8 = 5;
const REGION: u8 = 6;
const REGION_REFUSED: u8 = 7;
const VOIDS: u8 = 8;
const ATTACH_REFUSED: u8 = 9;
const REGION_PRIVATE: u8 = 10;

/// A message on the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SocketMessage {
    /// The doorbell.
    Ring,
    /// Asks for a file that was exposed.
    FileWanted { file: u64 },
    /// The file, whose descriptor comes with it.
    File { file: u64, bytes: u64 },
    /// The file is not exposed, or freed: whoever has it mapped is to let go of it.
    FileGone { file: u64 },
    /// Asks for a region.
    RegionWanted { key: u64 },
    /// The region, with the descriptor of its memory.
    Region(RegionTold),
    /// The region, which the kernel can read at this address of the process.
    RegionPrivate { told: RegionTold, address: u64 },
    /// There is no such region, or it cannot be mapped: ask for operations by frames.
    RegionRefused { key: u64 },
    /// The words that say which regions are open, whose descriptor comes with it.
    Voids { bytes: u64 },
    /// Private memory need not be exposed: it cannot be read from here.
    AttachRefused,
}

/// What is told of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RegionTold {
    pub(super) key: u64,
    /// Its bytes.
    pub(super) len: u64,
    /// The word that says whether it is open, and what it is while it is.
    pub(super) slot: u32,
    pub(super) open: u64,
    pub(super) access: Access,
    /// The file of buffers it is in; zero if it has memory of its own.
    pub(super) file: u64,
    /// Bytes of that memory, and where the region begins.
    pub(super) bytes: u64,
    pub(super) offset: u64,
}

impl RegionTold {
    /// The words that every telling begins with.
    fn head(&self) -> [u64; 4] {
        let access = u64::from(self.access.read)
            | u64::from(self.access.write) << 1
            | u64::from(self.access.atomic) << 2;
        let slot = u64::from(self.slot) << 32 | access;
        [self.key, self.len, slot, self.open]
    }
}

impl SocketMessage {
    pub(super) fn encode(&self) -> SmallVec<[u8; MESSAGE_BYTES_MAX]> {
        let words = |kind, words: &[u64]| {
            let mut out = SmallVec::from_slice(&[kind]);
            for word in words {
                out.extend_from_slice(&word.to_le_bytes());
            }
            out
        };
        match *self {
            Self::Ring => words(RING, &[]),
            Self::FileWanted { file } => words(FILE_WANTED, &[file]),
            Self::File { file, bytes } => words(FILE, &[file, bytes]),
            Self::FileGone { file } => words(FILE_GONE, &[file]),
            Self::RegionWanted { key } => words(REGION_WANTED, &[key]),
            Self::RegionPrivate { told, address } => {
                let mut out: SmallVec<_> = words(REGION_PRIVATE, &told.head());
                out.extend_from_slice(&address.to_le_bytes());
                out
            }
            Self::Region(told) => {
                let mut out: SmallVec<[u8; MESSAGE_BYTES_MAX]> = words(REGION, &told.head());
                for word in [told.file, told.bytes, told.offset] {
                    out.extend_from_slice(&word.to_le_bytes());
                }
                out
            }
            Self::RegionRefused { key } => words(REGION_REFUSED, &[key]),
            Self::Voids { bytes } => words(VOIDS, &[bytes]),
            Self::AttachRefused => words(ATTACH_REFUSED, &[]),
        }
    }

    /// The message that the bytes begin with, and its length; `None` if more must come.
    ///
    /// # Errors
    /// They are the beginning of no message.
    pub(super) fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, WireError> {
        let Some((&kind, rest)) = bytes.split_first() else {
            return Ok(None);
        };
        let count = match kind {
            RING | ATTACH_REFUSED => 0,
            FILE_WANTED | FILE_GONE | REGION_WANTED | REGION_REFUSED | VOIDS => 1,
            FILE => 2,
            REGION_PRIVATE => 5,
            REGION => 7,
            _ => {
                return Err(WireError::Malformed {
                    what: "unknown message on the socket of shared memory",
                });
            }
        };
        let (words, _) = rest.as_chunks::<8>();
        let Some(words) = words.get(..count) else {
            return Ok(None);
        };
        let word = |at: usize| words.get(at).map_or(0, |word| u64::from_le_bytes(*word));
        let first = word(0);
        let message = match kind {
            RING => Self::Ring,
            FILE_WANTED => Self::FileWanted { file: first },
            FILE => Self::File {
                file: first,
                bytes: word(1),
            },
            FILE_GONE => Self::FileGone { file: first },
            REGION_WANTED => Self::RegionWanted { key: first },
            REGION => Self::Region(region_decode(word)?),
            REGION_PRIVATE => region_private_decode(word)?,
            REGION_REFUSED => Self::RegionRefused { key: first },
            VOIDS => Self::Voids { bytes: first },
            _ => Self::AttachRefused,
        };
        Ok(Some((message, 1 + 8 * count)))
    }

    /// Whether a descriptor comes with it.
    fn has_descriptor(&self) -> bool {
        matches!(
            self,
            Self::File { .. } | Self::Region(_) | Self::Voids { .. }
        )
    }
}

fn region_decode(word: impl Fn(usize) -> u64) -> Result<RegionTold, WireError> {
    let access = word(2) as u32;
    let end = word(6).checked_add(word(1));
    if access > 7 || end.is_none_or(|end| end > word(5)) {
        return Err(WireError::Malformed {
            what: "a region that is told of lies outside its memory",
        });
    }
    Ok(RegionTold {
        key: word(0),
        len: word(1),
        slot: (word(2) >> 32) as u32,
        open: word(3),
        access: Access {
            read: access & 1 != 0,
            write: access & 2 != 0,
            atomic: access & 4 != 0,
        },
        file: word(4),
        bytes: word(5),
        offset: word(6),
    })
}

fn region_private_decode(word: impl Fn(usize) -> u64) -> Result<SocketMessage, WireError> {
    let (len, access, address) = (word(1), word(2) as u32, word(4));
    if access != 1 || address.checked_add(len).is_none() {
        return Err(WireError::Malformed {
            what: "private memory that is told of can be written, or has no end",
        });
    }
    let told = RegionTold {
        key: word(0),
        len,
        slot: (word(2) >> 32) as u32,
        open: word(3),
        access: Access::READ,
        file: 0,
        bytes: len,
        offset: 0,
    };
    Ok(SocketMessage::RegionPrivate { told, address })
}

/// What a look at the socket found.
pub(super) enum Heard {
    Message(SocketMessage, Option<OwnedFd>),
    Nothing,
    /// The peer has hung up.
    End,
}

/// The socket of an open channel.
pub(super) struct Socket {
    stream: UnixStream,
    /// Bytes that were read and not yet decoded.
    read: [u8; READ_BYTES],
    at: usize,
    end: usize,
    /// None for one that the system could not give us.
    descriptors: VecDeque<Option<OwnedFd>>,
    waiting: VecDeque<(SocketMessage, Option<OwnedFd>)>,
}

impl Socket {
    /// `early` is what was read behind the handshake.
    ///
    /// # Errors
    /// That is more than a peer has to say before it is asked.
    pub(super) fn new(stream: UnixStream, early: &[u8]) -> Result<Self, WireError> {
        let mut read = [0; READ_BYTES];
        let start = read.get_mut(..early.len()).ok_or(WireError::TooLong {
            what: "what follows the handshake",
            len: early.len() as u64,
            limit: READ_BYTES as u64,
        })?;
        start.copy_from_slice(early);
        Ok(Self {
            stream,
            read,
            at: 0,
            end: early.len(),
            descriptors: VecDeque::new(),
            waiting: VecDeque::new(),
        })
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether messages of ours wait for room.
    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Rings the peer's doorbell; whether the peer is still there.
    pub(super) fn ring(&mut self) -> io::Result<bool> {
        match self.send_now(&SocketMessage::Ring, None) {
            // A full socket is a doorbell that rings already.
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends a message, or keeps it until there is room.
    ///
    /// # Errors
    /// The peer does not read what it asked for, or the system refuses.
    pub(super) fn send(
        &mut self,
        message: SocketMessage,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        if self.waiting.is_empty() {
            match self.send_now(&message, descriptor) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // That the peer is gone is seen when reading.
                Err(error) if is_gone(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if self.waiting.len() >= WAITING_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the peer asks for memory and does not read the answers",
            ));
        }
        let descriptor = descriptor.map(|fd| fd.try_clone_to_owned()).transpose()?;
        self.waiting.push_back((message, descriptor));
        Ok(())
    }

    /// Sends what waits, as far as there is room.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while let Some((message, descriptor)) = self.waiting.front() {
            let descriptor = descriptor.as_ref().map(AsFd::as_fd);
            match self.send_now(message, descriptor) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
            self.waiting.pop_front();
        }
        Ok(())
    }

    fn send_now(
        &self,
        message: &SocketMessage,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        debug_assert_eq!(message.has_descriptor(), descriptor.is_some());
        let bytes = message.encode();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = descriptor.as_slice();
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let parts = [IoSlice::new(&bytes)];
        match sendmsg(self.stream.as_fd(), &parts, &mut control, flags)? {
            sent if sent == bytes.len() => Ok(()),
            // The system takes what fits one of its buffers whole or not at all.
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// The next message.
    ///
    /// # Errors
    /// What comes is no message, or has not the descriptors that belong to it.
    pub(super) fn receive(&mut self) -> Result<Heard, WireError> {
        loop {
            let bytes = &self.read[self.at..self.end];
            if let Some((message, used)) = SocketMessage::decode(bytes)? {
                self.at += used;
                let descriptor = match message.has_descriptor() {
                    true => self.descriptors.pop_front().ok_or(DESCRIPTOR_MISSING)?,
                    false => None,
                };
                return Ok(Heard::Message(message, descriptor));
            }
            if self.at == self.end && !self.descriptors.is_empty() {
                return Err(DESCRIPTOR_SURPLUS);
            }
            self.read.copy_within(self.at..self.end, 0);
            (self.at, self.end) = (0, self.end - self.at);
            let filled = self.fill();
            if self.descriptors.len() > DESCRIPTORS_MAX {
                return Err(DESCRIPTOR_SURPLUS);
            }
            match filled {
                Ok(0) => return Ok(Heard::End),
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Heard::Nothing);
                }
                Err(_) => return Ok(Heard::End),
            }
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut self.read[self.end..])];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let message = recvmsg(self.stream.as_fd(), parts, &mut control, flags)?;
        let before = self.descriptors.len();
        for ancillary in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
                self.descriptors.extend(rights.map(Some));
            }
        }
        let cut = message.flags.contains(ReturnFlags::CTRUNC);
        if cut && self.descriptors.len() == before {
            tracing::warn!("there are as many open files as may be: a peer's memory is not mapped");
            self.descriptors.push_back(None);
        }
        Ok(message.bytes)
    }
}

const DESCRIPTOR_SURPLUS: WireError = WireError::Malformed {
    what: "a descriptor that belongs to no message",
};

const DESCRIPTOR_MISSING: WireError = WireError::Malformed {
    what: "a descriptor is missing on the socket of shared memory",
};

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionReset)
}

/// Decodes bytes as a peer might send them.
#[doc(hidden)]
pub fn fuzz_socket(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((message, used))) = SocketMessage::decode(rest) {
        let encoded = message.encode();
        assert!(used <= MESSAGE_BYTES_MAX && encoded[..] == rest[..used]);
        rest = &rest[used..];
    }
}

#[cfg(all(test, not(praas_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::buf::mapping::memfd_create_sized;

    proptest! {
        #[test]
        fn what_is_decoded_is_what_was_sent(
            kind in 0..12_u8,
            bytes in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..200),
        ) {
            fuzz_socket(&[&[kind], &bytes[..]].concat());
        }
    }

    fn pair() -> (Socket, Socket) {
        let (a, b) = UnixStream::pair().unwrap();
        (Socket::new(a, &[]).unwrap(), Socket::new(b, &[]).unwrap())
    }

    #[test]
    fn descriptors_come_with_their_messages() {
        let (mut a, mut b) = pair();
        let files: Vec<_> = (1..=3)
            .map(|pages| memfd_create_sized("test", pages * 4096).unwrap())
            .collect();
        let mut sent = Vec::new();
        for (at, file) in files.iter().enumerate() {
            assert!(a.ring().unwrap());
            let bytes = (at as u64 + 1) * 4096;
            let message = SocketMessage::File { file: 7, bytes };
            a.send(message, Some(file.as_fd())).unwrap();
            a.send(SocketMessage::FileGone { file: 8 }, None).unwrap();
            sent.extend([
                SocketMessage::Ring,
                message,
                SocketMessage::FileGone { file: 8 },
            ]);
        }
        for message in sent {
            let Heard::Message(heard, descriptor) = b.receive().unwrap() else {
                panic!("a message is missing");
            };
            assert_eq!(heard, message);
            if let SocketMessage::File { bytes, .. } = message {
                let stat = rustix::fs::fstat(descriptor.unwrap()).unwrap();
                assert_eq!(stat.st_size as u64, bytes);
            }
        }
        assert!(matches!(b.receive(), Ok(Heard::Nothing)));
        drop(a);
        assert!(matches!(b.receive(), Ok(Heard::End)));
    }

    /// In a process of its own, or other tests would find no descriptors either.
    #[test]
    fn a_full_table_of_descriptors_costs_the_descriptor_only() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        const ALONE: &str = "PRAAS_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let name = "a_full_table_of_descriptors_costs_the_descriptor_only";
            let status = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", &format!("shm::socket::tests::{name}")])
                .env(ALONE, "1")
                .status();
            assert!(status.unwrap().success());
            return;
        }
        let (mut a, mut b) = pair();
        let file = memfd_create_sized("test", 4096).unwrap();
        let message = SocketMessage::File {
            file: 7,
            bytes: 4096,
        };
        let limit = getrlimit(Resource::Nofile);
        let none = Rlimit {
            current: Some(0),
            maximum: limit.maximum,
        };
        a.send(message, Some(file.as_fd())).unwrap();
        setrlimit(Resource::Nofile, none).unwrap();
        let heard = b.receive();
        setrlimit(Resource::Nofile, limit).unwrap();
        assert!(matches!(heard, Ok(Heard::Message(heard, None)) if heard == message));
        a.send(message, Some(file.as_fd())).unwrap();
        assert!(matches!(b.receive(), Ok(Heard::Message(_, Some(_)))));
    }

    #[test]
    fn messages_without_their_descriptors_are_errors() {
        use std::io::Write;
        let (mut a, mut b) = pair();
        let message = SocketMessage::Voids { bytes: 4096 };
        a.stream.write_all(&message.encode()).unwrap();
        assert!(b.receive().is_err());
        let (mut a, mut b) = pair();
        a.stream.write_all(&[99]).unwrap();
        assert!(b.receive().is_err());
    }

    /// Sends bytes with a descriptor, however they are cut.
    fn send_cut(to: &Socket, bytes: &[u8], fd: BorrowedFd<'_>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [fd];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let parts = [IoSlice::new(bytes)];
        sendmsg(to.stream.as_fd(), &parts, &mut control, SendFlags::DONTWAIT).unwrap();
    }

    #[test]
    fn descriptors_that_belong_to_no_message_do_not_pile_up() {
        let (a, mut b) = pair();
        let file = memfd_create_sized("test", 4096).unwrap();
        let message = SocketMessage::FileGone { file: 7 }.encode();
        let stream = message.repeat(32);
        // What is sent at once always ends within a message, so that the reader never has read all.
        let (first, rest) = stream.split_at(message.len() - 1);
        send_cut(&a, first, file.as_fd());
        for cut in rest.chunks(message.len()) {
            send_cut(&a, cut, file.as_fd());
        }
        let mut heard = 0;
        let error = loop {
            match b.receive() {
                Ok(Heard::Message(..)) => heard += 1,
                Ok(_) => panic!("{} descriptors are kept", b.descriptors.len()),
                Err(error) => break error,
            }
        };
        assert_eq!(error, DESCRIPTOR_SURPLUS);
        assert!(heard < 4);
    }

    #[test]
    fn whoever_does_not_read_is_given_up() {
        let (mut a, _b) = pair();
        let flood = std::iter::repeat_with(|| a.send(SocketMessage::AttachRefused, None));
        let failed = flood.take(1_000_000).any(|sent| sent.is_err());
        assert!(failed && a.waits());
    }
}

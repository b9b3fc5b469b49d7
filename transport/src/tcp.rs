//! TCP: frames over sockets of the network.

use std::io;
use std::time::Duration;

use mio::net::TcpStream;
use socket2::{SockRef, TcpKeepalive};

use crate::stream::StreamWire;

/// A connected TCP peer.
pub(crate) type TcpWire = StreamWire<TcpStream>;

/// Settings of a fresh socket: no delay, and death noticed by the kernel.
pub(crate) fn socket_prepare(stream: &TcpStream, dead_after_ms: u32) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    let dead_after = Duration::from_millis(u64::from(dead_after_ms.max(1_000)));
    let third = Duration::from_secs((dead_after.as_secs() / 3).max(1));
    let keepalive = TcpKeepalive::new()
        .with_time(third)
        .with_interval(third)
        .with_retries(2);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(dead_after))
}

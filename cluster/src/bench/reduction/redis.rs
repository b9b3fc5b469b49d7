//! The same sum in Redis: a server of our own, and a client that speaks its protocol (RESP,
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>) over one socket.
//!
//! A function that keeps nothing between its invocations reads the vector, adds, and writes it
//! back: a GET and a SET each time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use praas_transport::TransportKind;

use super::host::child_end;
use crate::bench::BenchError;

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of the longest answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 30;
const KEY: &[u8] = b"sum";
const SOCKET: &str = "redis.sock";

trait Socket: Read + Write + Send {}
impl<T: Read + Write + Send> Socket for T {}

/// A server, and a connection to it.
pub(in crate::bench) struct Redis {
    lines: BufReader<Box<dyn Socket>>,
    command: Vec<u8>,
    child: Child,
    dir: tempfile::TempDir,
}

fn failed(what: &str) -> impl Fn(std::io::Error) -> BenchError {
    let what = format!("{what} Redis");
    move |error| BenchError::system(what.clone())(error)
}

impl Redis {
    /// Starts `program`, pinned to a CPU, and connects over TCP or, for every other transport, a
    /// Unix socket.
    pub(in crate::bench) fn start(
        program: &Path,
        transport: TransportKind,
        cpu: Option<usize>,
    ) -> Result<Self, BenchError> {
        let dir = tempfile::tempdir().map_err(failed("make a directory for"))?;
        let path = dir.path().join(SOCKET);
        // Nobody else listens there when it is closed again, as a rule.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let address = free.map_err(failed("find a port for"))?;
        let mut command = Command::new(program);
        command
            .args(["--save", "", "--appendonly", "no", "--bind", "127.0.0.1"])
            .args(["--port", &address.port().to_string(), "--unixsocket"])
            .arg(&path)
            .args(["--dir".as_ref(), dir.path().as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut child = command.spawn().map_err(failed("start"))?;
        let connected = socket_open(transport, &path, address, &mut child);
        let socket = match connected {
            Ok(socket) => socket,
            Err(error) => {
                child_end(&mut child);
                return Err(error);
            }
        };
        if let Some(cpu) = cpu {
            let pid = i32::try_from(child.id())
                .ok()
                .and_then(rustix::process::Pid::from_raw);
            let mut cpus = rustix::thread::CpuSet::new();
            cpus.set(cpu);
            let pinned = rustix::thread::sched_setaffinity(pid, &cpus);
            pinned.map_err(|error| failed("pin")(error.into()))?;
        }
        Ok(Self {
            lines: BufReader::with_capacity(64 << 10, socket),
            command: Vec::new(),
            child,
            dir,
        })
    }

    fn send(&mut self, words: &[&[u8]]) -> Result<(), BenchError> {
        self.command.clear();
        let head = format!("*{}\r\n", words.len());
        self.command.extend_from_slice(head.as_bytes());
        for word in words {
            let head = format!("${}\r\n", word.len());
            self.command.extend_from_slice(head.as_bytes());
            self.command.extend_from_slice(word);
            self.command.extend_from_slice(b"\r\n");
        }
        let sent = self.lines.get_mut().write_all(&self.command);
        sent.map_err(failed("write to"))
    }

    /// The answer's body, if it has one, into `body`.
    fn answer(&mut self, body: &mut Vec<u8>) -> Result<(), BenchError> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line);
        read.map_err(failed("read from"))?;
        let odd = || BenchError::Peer(format!("redis-server says {line:?}"));
        let (kind, rest) = line.split_at_checked(1).ok_or_else(odd)?;
        body.clear();
        match (kind, rest.trim_end().parse::<i64>()) {
            ("+" | ":", _) | ("$", Ok(-1)) => Ok(()),
            ("$", Ok(len)) => {
                let len = usize::try_from(len).ok();
                let len = len.filter(|len| *len <= ANSWER_BYTES_MAX).ok_or_else(odd)?;
                body.resize(len + 2, 0);
                self.lines.read_exact(body).map_err(failed("read from"))?;
                body.truncate(len);
                Ok(())
            }
            _ => Err(odd()),
        }
    }

    /// Adds a vector: GET, add, SET.
    pub(super) fn add(&mut self, vector: &[u8], sum: &mut Vec<u8>) -> Result<(), BenchError> {
        self.get(sum)?;
        match sum.is_empty() {
            true => sum.extend_from_slice(vector),
            false => super::vector_add(sum, vector),
        }
        self.set(sum)
    }

    pub(in crate::bench) fn set(&mut self, value: &[u8]) -> Result<(), BenchError> {
        self.send(&[b"SET", KEY, value])?;
        self.answer(&mut Vec::new())
    }

    pub(in crate::bench) fn get(&mut self, sum: &mut Vec<u8>) -> Result<(), BenchError> {
        self.send(&[b"GET", KEY])?;
        self.answer(sum)
    }

    /// The Unix socket at which it listens.
    pub(in crate::bench) fn socket(&self) -> PathBuf {
        self.dir.path().join(SOCKET)
    }

    /// Sets one of many values; the bytes are sent from where they are.
    pub(in crate::bench) fn piece_set(
        &mut self,
        number: usize,
        bytes: &[u8],
    ) -> Result<(), BenchError> {
        let key = format!("piece {number}");
        let (keys, length) = (key.len(), bytes.len());
        let head = format!("*3\r\n$3\r\nSET\r\n${keys}\r\n{key}\r\n${length}\r\n");
        let socket = self.lines.get_mut();
        let sent = socket.write_all(head.as_bytes());
        let sent = sent.and_then(|()| socket.write_all(bytes));
        let sent = sent.and_then(|()| socket.write_all(b"\r\n"));
        sent.map_err(failed("write to"))?;
        self.answer(&mut Vec::new())
    }

    /// Gets it back into memory of the same length.
    pub(in crate::bench) fn piece_get(
        &mut self,
        number: usize,
        into: &mut [u8],
    ) -> Result<(), BenchError> {
        self.send(&[b"GET", format!("piece {number}").as_bytes()])?;
        let mut line = String::new();
        let mut end = [0; 2];
        let read = self.lines.read_line(&mut line);
        read.map_err(failed("read from"))?;
        if line.trim_end() != format!("${}", into.len()) {
            return Err(BenchError::Peer(format!("redis-server says {line:?}")));
        }
        let read = self.lines.read_exact(into);
        let read = read.and_then(|()| self.lines.read_exact(&mut end));
        read.map_err(failed("read from"))
    }

    /// Deletes all that there is.
    pub(in crate::bench) fn clear_all(&mut self) -> Result<(), BenchError> {
        self.send(&[b"FLUSHALL", b"SYNC"])?;
        self.answer(&mut Vec::new())
    }

    pub(super) fn clear(&mut self) -> Result<(), BenchError> {
        self.send(&[b"DEL", KEY])?;
        self.answer(&mut Vec::new())
    }
}

/// Connects as soon as the server listens.
fn socket_open(
    transport: TransportKind,
    path: &Path,
    address: std::net::SocketAddr,
    child: &mut Child,
) -> Result<Box<dyn Socket>, BenchError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let socket: std::io::Result<Box<dyn Socket>> = match transport {
            TransportKind::Tcp => TcpStream::connect(address).and_then(|socket| {
                socket.set_nodelay(true)?;
                Ok(Box::new(socket) as _)
            }),
            _ => UnixStream::connect(path).map(|socket| Box::new(socket) as _),
        };
        match socket {
            Ok(socket) => return Ok(socket),
            Err(error) if Instant::now() > deadline => return Err(failed("connect to")(error)),
            Err(_) => {}
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(BenchError::Peer(format!("redis-server ended ({status})")));
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        child_end(&mut self.child);
    }
}

//! Measuring between two hosts: who serves, who connects, and how they know each other.
//!
//! ```text
//!   who measures                              praas bench serve
//!     |<-- version, nonce --------------------- |  accepts
//!     | --- nonce, proof ---------------------->|  looks at the proof: only who knows the secret
//!     |<-- proof, or why not ------------------ |  has one; one measurement at a time
//!     | === setup, and so on ==================>|  a peer process, which gets the socket
//! ```
//!
//! The secret itself is never sent. Proofs and the session's key are keyed hashes over both nonces,
//! and the data channels are authenticated by tickets under that key, so that whoever listens on
//! the way cannot connect. What is measured is not encrypted: it is nothing but zeros and ones.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::sockopt;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{BenchError, PEER_COMMAND};

/// Two builds measure with each other if they have the same.
const VERSION: u32 = 1;
/// What a secret is for: keys for anything else are other keys.
const PURPOSE: &str = "praas bench 2026 between hosts";
/// Where a secret is looked for if no file is named.
pub const SECRET_ENV: &str = "PRAAS_BENCH_SECRET";
/// Bytes of the shortest secret.
const SECRET_BYTES_MIN: usize = 16;
/// How long a connection, and its handshake, may take.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a newcomer waits for a measurement that is about to end.
const TURN_PATIENCE: Duration = Duration::from_secs(3);
/// Handshakes at once; whoever comes above it is hung up on.
const HANDSHAKES_MAX: usize = 16;
/// Bytes of the longest line of a handshake.
const LINE_BYTES_MAX: u64 = 1024;
/// Seconds after which a silent host counts as gone.
const SILENT_S: u64 = 10;

/// What the serving side says first.
#[derive(Debug, Serialize, Deserialize)]
struct Greeting {
    praas_bench: u32,
    nonce: [u8; 16],
}

/// What the other one answers.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    nonce: [u8; 16],
    proof: [u8; 32],
}

/// What follows.
#[derive(Debug, Serialize, Deserialize)]
enum Verdict {
    Welcome { proof: [u8; 32] },
    Refused { why: String },
}

/// What both sides must know.
#[derive(Clone, PartialEq, Eq)]
struct Shared([u8; 32]);

impl Shared {
    fn new(secret: &str) -> Result<Self, BenchError> {
        let secret = secret.trim();
        match secret.len() < SECRET_BYTES_MIN {
            true => Err(BenchError::Secret(format!(
                "is too short: it must have {SECRET_BYTES_MIN} bytes or more"
            ))),
            false => Ok(Self(blake3::derive_key(PURPOSE, secret.as_bytes()))),
        }
    }

    /// What only who knows the secret can say of two nonces.
    fn keyed(&self, label: &str, ours: &[u8; 16], theirs: &[u8; 16]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(ours).update(theirs).update(label.as_bytes());
        hasher.finalize()
    }
}

/// Reads the secret: from a file that is its owner's alone, else from the environment.
///
/// # Errors
/// It cannot be read, or others can read it.
pub fn secret_read(file: Option<&Path>) -> Result<Option<String>, BenchError> {
    let Some(file) = file else {
        return Ok(std::env::var(SECRET_ENV).ok());
    };
    let failed = |what: &str| BenchError::system(format!("{what} {}", file.display()));
    let mut opened = File::open(file).map_err(failed("open"))?;
    let mode = opened.metadata().map_err(failed("look at"))?.mode();
    if mode & 0o077 != 0 {
        let (file, mode) = (file.display(), mode & 0o777);
        return Err(BenchError::Secret(format!(
            "in {file} can be read by others (mode {mode:o}): chmod 600"
        )));
    }
    let mut secret = String::new();
    opened.read_to_string(&mut secret).map_err(failed("read"))?;
    Ok(Some(secret))
}

/// A secret that nobody guesses.
pub(super) fn secret_new() -> Result<String, BenchError> {
    let two = [nonce_new()?, nonce_new()?];
    let digits = two.as_flattened().iter().map(|byte| format!("{byte:02x}"));
    Ok(digits.collect())
}

/// A peer on another host.
#[derive(Clone, PartialEq, Eq)]
pub struct Remote {
    address: String,
    shared: Shared,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Remote {
    /// Whoever serves at this address and knows this secret.
    ///
    /// # Errors
    /// The secret is too short.
    pub fn new(address: String, secret: &str) -> Result<Self, BenchError> {
        let shared = Shared::new(secret)?;
        Ok(Self { address, shared })
    }

    /// Who serves.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Begins a session: its socket and its key.
    pub(super) fn session_open(&self) -> Result<(OwnedFd, [u8; 32]), BenchError> {
        let failed = || BenchError::system(format!("connect to {}", self.address));
        let stream = stream_connect(&self.address).map_err(failed())?;
        let until = Instant::now() + HANDSHAKE_PATIENCE + TURN_PATIENCE;
        let mut lines = Lines::new(stream, until).map_err(failed())?;
        let greeting: Greeting = lines.read().map_err(failed())?;
        let refused = |reason: String| BenchError::Refused {
            address: self.address.clone(),
            reason,
        };
        if greeting.praas_bench != VERSION {
            let version = greeting.praas_bench;
            return Err(refused(format!(
                "it speaks version {version}, this program {VERSION}"
            )));
        }
        let nonce = nonce_new()?;
        let proof = self.shared.keyed("dialler", &nonce, &greeting.nonce);
        let hello = Hello {
            nonce,
            proof: *proof.as_bytes(),
        };
        lines.write(&hello).map_err(failed())?;
        let expected = self.shared.keyed("listener", &nonce, &greeting.nonce);
        match lines.read().map_err(failed())? {
            Verdict::Refused { why } => return Err(refused(why)),
            Verdict::Welcome { proof } if expected != blake3::Hash::from(proof) => {
                return Err(refused("it does not know the secret".into()));
            }
            Verdict::Welcome { .. } => {}
        }
        let key = self.shared.keyed("session", &nonce, &greeting.nonce);
        Ok((lines.end().map_err(failed())?, *key.as_bytes()))
    }
}

fn nonce_new() -> Result<[u8; 16], BenchError> {
    let mut nonce = [0; 16];
    let random = getrandom::fill(&mut nonce);
    random.map_err(|error| BenchError::system("get random bytes")(io::Error::other(error)))?;
    Ok(nonce)
}

/// Connects to the first of a name's addresses that answers.
fn stream_connect(to: &str) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "no such host");
    for address in to.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, HANDSHAKE_PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// The lines of a handshake, which ends in time. Each side writes only when it has read, so nothing
/// is read that belongs to what comes behind the handshake.
struct Lines {
    reader: BufReader<TcpStream>,
    until: Instant,
}

impl Lines {
    fn new(stream: TcpStream, until: Instant) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        // A host that is gone without a word is noticed while nobody says anything.
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, Duration::from_secs(SILENT_S / 2))?;
        sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(SILENT_S / 4))?;
        sockopt::set_tcp_keepcnt(&stream, 2)?;
        let reader = BufReader::new(stream);
        Ok(Self { reader, until })
    }

    fn read<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.reader.get_ref().set_read_timeout(Some(left))?;
            let room = LINE_BYTES_MAX - line.len() as u64;
            let read = (&mut self.reader).take(room).read_until(b'\n', &mut line);
            match read {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error),
            }
        }
        serde_json::from_slice(&line).map_err(io::Error::from)
    }

    fn write<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.reader.get_mut().write_all(&line)
    }

    fn end(self) -> io::Result<OwnedFd> {
        let stream = self.reader.into_inner();
        stream.set_read_timeout(None)?;
        Ok(stream.into())
    }
}

/// Serves measurements of other hosts.
pub(super) struct Server {
    listener: TcpListener,
    shared: Shared,
    state: Arc<State>,
}

/// Handshakes that are under way, and whether a measurement is.
#[derive(Default)]
struct State {
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Default)]
struct Now {
    handshakes: usize,
    measuring: bool,
    /// Measurements that have ended.
    done: u64,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// The address is taken or not ours, or the secret is too short.
    pub(super) fn new(listen: &str, secret: &str) -> Result<Self, BenchError> {
        let shared = Shared::new(secret)?;
        let listener = TcpListener::bind(listen);
        Ok(Self {
            listener: listener.map_err(BenchError::system(format!("listen at {listen}")))?,
            shared,
            state: Arc::default(),
        })
    }

    pub(super) fn address(&self) -> Result<SocketAddr, BenchError> {
        let address = self.listener.local_addr();
        address.map_err(BenchError::system("find out where this listens"))
    }

    /// Serves so many measurements, or for ever.
    pub(super) fn serve(self, sessions: Option<u64>) -> Result<(), BenchError> {
        let state = Arc::clone(&self.state);
        let serving = move || self.accept_all();
        let thread = std::thread::Builder::new().name("bench-serve".into());
        let thread = thread
            .spawn(serving)
            .map_err(BenchError::system("start a thread"))?;
        let Some(sessions) = sessions else {
            let ended = thread.join();
            return ended.unwrap_or_else(|_| Err(BenchError::Peer("has panicked".into())));
        };
        let mut now = state.now.lock().unwrap_or_else(PoisonError::into_inner);
        while now.done < sessions {
            let waited = state.changed.wait(now);
            now = waited.unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn accept_all(self) -> Result<(), BenchError> {
        loop {
            let (stream, from) = match self.listener.accept() {
                Ok(accepted) => accepted,
                // One peer's trouble (reset at once) is not the listener's.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(BenchError::system("accept a connection")(error)),
            };
            if !self.state.handshake_begin() {
                tracing::warn!(%from, "hung up: too many handshakes at once");
                continue;
            }
            let (shared, state) = (self.shared.clone(), Arc::clone(&self.state));
            let session = move || {
                if let Err(error) = session_serve(stream, &shared, &state) {
                    eprintln!("measurement of {from}: {error}");
                }
            };
            let thread = std::thread::Builder::new().name("bench-session".into());
            if let Err(error) = thread.spawn(session) {
                self.state.handshake_end();
                eprintln!("cannot start a thread for {from}: {error}");
            }
        }
    }
}

impl State {
    fn lock(&self) -> std::sync::MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handshake_begin(&self) -> bool {
        let mut now = self.lock();
        let room = now.handshakes < HANDSHAKES_MAX;
        now.handshakes += usize::from(room);
        room
    }

    fn handshake_end(&self) {
        self.lock().handshakes -= 1;
    }

    /// Waits for the turn to measure, for a while.
    fn turn_take(&self) -> bool {
        let now = self.lock();
        let busy = |now: &mut Now| now.measuring;
        let waited = self.changed.wait_timeout_while(now, TURN_PATIENCE, busy);
        let (mut now, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return false;
        }
        now.measuring = true;
        true
    }

    fn turn_end(&self) {
        let mut now = self.lock();
        (now.measuring, now.done) = (false, now.done + 1);
        self.changed.notify_all();
    }
}

fn session_serve(stream: TcpStream, shared: &Shared, state: &State) -> Result<(), BenchError> {
    let opened = session_accept(stream, shared, state);
    state.handshake_end();
    let Some((socket, key)) = opened? else {
        return Ok(());
    };
    let served = peer_serve(socket, key);
    state.turn_end();
    served
}

/// The serving side of a handshake; with a session the turn to measure is taken.
fn session_accept(
    stream: TcpStream,
    shared: &Shared,
    state: &State,
) -> Result<Option<(OwnedFd, [u8; 32])>, BenchError> {
    let failed = || BenchError::system("greet");
    let until = Instant::now() + HANDSHAKE_PATIENCE;
    let mut lines = Lines::new(stream, until).map_err(failed())?;
    let nonce = nonce_new()?;
    let greeting = Greeting {
        praas_bench: VERSION,
        nonce,
    };
    lines.write(&greeting).map_err(failed())?;
    let hello: Hello = lines.read().map_err(failed())?;
    let expected = shared.keyed("dialler", &hello.nonce, &nonce);
    if expected != blake3::Hash::from(hello.proof) {
        let why = "the secret is another one".into();
        lines.write(&Verdict::Refused { why }).map_err(failed())?;
        return Err(BenchError::Secret("of a newcomer is another one".into()));
    }
    if !state.turn_take() {
        let why = "another measurement is under way".into();
        lines.write(&Verdict::Refused { why }).map_err(failed())?;
        return Ok(None);
    }
    let proof = shared.keyed("listener", &hello.nonce, &nonce);
    let welcome = Verdict::Welcome {
        proof: *proof.as_bytes(),
    };
    let key = shared.keyed("session", &hello.nonce, &nonce);
    let socket = lines.write(&welcome).and_then(|()| lines.end());
    match socket {
        Ok(socket) => Ok(Some((socket, *key.as_bytes()))),
        Err(error) => {
            state.turn_end();
            Err(failed()(error))
        }
    }
}

/// Runs a peer process for a session, to its end.
fn peer_serve(socket: OwnedFd, key: [u8; 32]) -> Result<(), BenchError> {
    let memory = || -> io::Result<File> {
        let memory = memfd_create("praas-bench-key", MemfdFlags::CLOEXEC)?;
        let mut memory = File::from(memory);
        memory.write_all(&key)?;
        memory.rewind()?;
        Ok(memory)
    };
    let memory = memory().map_err(BenchError::system("hand out a key"))?;
    let status = Command::new("/proc/self/exe")
        .arg0("praas")
        .arg(PEER_COMMAND)
        .stdin(Stdio::from(socket))
        .stdout(Stdio::from(memory))
        .status()
        .map_err(BenchError::system("start a peer"))?;
    match status.success() {
        true => Ok(()),
        false => Err(BenchError::PeerEnded(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "a secret of two hosts";

    /// What both sides of a handshake say.
    fn handshake(theirs: &str, ours: &str) -> (Result<[u8; 32], String>, Result<[u8; 32], String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Shared::new(theirs).unwrap();
        let serving = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let accepted = session_accept(stream, &shared, &State::default());
            accepted
                .map(|session| session.unwrap().1)
                .map_err(|error| error.to_string())
        });
        let opened = Remote::new(address, ours).unwrap().session_open();
        let opened = opened
            .map(|session| session.1)
            .map_err(|error| error.to_string());
        (opened, serving.join().unwrap())
    }

    #[test]
    fn who_knows_the_secret_gets_the_same_key() {
        let (ours, theirs) = handshake(SECRET, SECRET);
        assert_eq!(ours.unwrap(), theirs.unwrap());
        let (again, _) = handshake(SECRET, SECRET);
        assert_ne!(again.unwrap(), handshake(SECRET, SECRET).0.unwrap());
    }

    #[test]
    fn who_does_not_know_the_secret_is_refused() {
        let (ours, theirs) = handshake(SECRET, "another secret of two hosts");
        assert!(ours.unwrap_err().contains("the secret is another one"));
        assert!(theirs.is_err());
        assert!(Shared::new("short").is_err());
    }

    #[test]
    fn one_measurement_at_a_time() {
        let state = State::default();
        assert!(state.turn_take());
        let waiting = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| state.turn_take());
            state.turn_end();
            waiting.join().unwrap()
        });
        assert!(waiting);
        assert_eq!(state.lock().done, 1);
    }
}

//! An S3 server of our own, and the plainest client: one PUT and one GET over one connection, by
//! URLs that are signed beforehand. So nobody hashes what is sent but the server, for its own ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hyper::Method;
use praas_runtime::swap::StorageUrl;

use super::timed;
use crate::bench::BenchError;
use crate::storage::S3Storage;

const BUCKET: &str = "bench";
/// What the server knows, and who asks it.
const KEY: (&str, &str) = ("bench", "0123456789abcdef");
const OBJECT: &str = "plain";
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of an answer's head.
const HEAD_BYTES_MAX: u64 = 64 << 10;

/// The server.
pub(super) struct S3 {
    child: Child,
    address: SocketAddr,
    dir: PathBuf,
}

fn failed(what: &str) -> impl Fn(std::io::Error) -> BenchError {
    let what = format!("{what} the S3 server");
    move |error| BenchError::system(what.clone())(error)
}

impl S3 {
    /// Starts `program`, which is s3s-fs, with its data in a folder.
    pub(super) fn start(program: &Path, dir: &Path) -> Result<Self, BenchError> {
        let (id, secret) = KEY;
        let credentials =
            format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
        let made = std::fs::create_dir_all(dir.join("data").join(BUCKET));
        made.and_then(|()| std::fs::write(dir.join("credentials"), credentials))
            .map_err(failed("make a folder for"))?;
        let child = Command::new(program)
            .args(["--host", "127.0.0.1", "--port", "0"])
            .args(["--access-key", id, "--secret-key", secret])
            .arg(dir.join("data"))
            .env("RUST_LOG", "s3s_fs=info")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed("start"))?;
        let mut server = Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            dir: dir.into(),
        };
        let ended = || BenchError::Peer("s3s-fs ends before it says where it listens".into());
        let mut output = BufReader::new(server.child.stdout.take().ok_or_else(ended)?);
        let mut line = String::new();
        server.address = loop {
            line.clear();
            let read = output.read_line(&mut line).map_err(failed("read from"))?;
            if read == 0 {
                return Err(ended());
            }
            let address = line.split_once("running at http://");
            let address = address.map(|(_, rest)| {
                let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':');
                rest[..end.unwrap_or(rest.len())].parse()
            });
            if let Some(Ok(address)) = address {
                break address;
            }
        };
        // It must not stop for a full pipe.
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut output, &mut std::io::sink());
        });
        Ok(server)
    }

    pub(super) fn url(&self) -> Result<StorageUrl, BenchError> {
        let credentials = self.dir.join("credentials");
        let text = format!(
            "s3://{BUCKET}/swap?endpoint=http://{}&credentials={}",
            self.address,
            credentials.display()
        );
        let url = text.parse();
        url.map_err(|error: praas_runtime::swap::StorageUrlError| BenchError::Storage(error.into()))
    }

    /// Deletes all that there is.
    pub(super) fn clear(&mut self) -> Result<(), BenchError> {
        let data = self.dir.join("data");
        std::fs::remove_dir_all(&data)
            .and_then(|()| std::fs::create_dir_all(data.join(BUCKET)))
            .map_err(failed("clear the data of"))
    }

    /// One object: put, and got back.
    pub(super) fn plain(&mut self, state: &[&[u8]]) -> Result<(Duration, Duration), BenchError> {
        let storage = S3Storage::new(&self.url()?).map_err(BenchError::Storage)?;
        let signed = |method| storage.url_signed(method, OBJECT);
        let put = signed(Method::PUT).map_err(BenchError::Storage)?;
        let get = signed(Method::GET).map_err(BenchError::Storage)?;
        let mut connection = Connection::open(self.address)?;
        let (out, ()) = timed(|| {
            let length: usize = state.iter().map(|object| object.len()).sum();
            connection.ask("PUT", &put, length)?;
            for object in state {
                let sent = connection.lines.get_mut().write_all(object);
                sent.map_err(failed("write to"))?;
            }
            connection.answer().map(drop)
        })?;
        let (back, bytes) = timed(|| {
            connection.ask("GET", &get, 0)?;
            let expected: usize = state.iter().map(|object| object.len()).sum();
            let length = connection.answer()?;
            if length != Some(expected) {
                let text = format!("gives {length:?} bytes of {expected}");
                return Err(BenchError::Peer(text));
            }
            let read = state.iter().map(|object| {
                let mut bytes = vec![0; object.len()];
                let read = connection.lines.read_exact(&mut bytes);
                read.map(|()| bytes).map_err(failed("read from"))
            });
            read.collect::<Result<Vec<_>, _>>()
        })?;
        drop(bytes);
        self.clear()?;
        Ok((out, back))
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection that speaks HTTP/1.1, as little of it as there is to speak.
struct Connection {
    lines: BufReader<TcpStream>,
    host: SocketAddr,
}

impl Connection {
    fn open(host: SocketAddr) -> Result<Self, BenchError> {
        let open = || {
            let socket = TcpStream::connect(host)?;
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            Ok(socket)
        };
        let socket = open().map_err(failed("connect to"))?;
        let lines = BufReader::with_capacity(64 << 10, socket);
        Ok(Self { lines, host })
    }

    /// Sends a request's head.
    fn ask(&mut self, method: &str, url: &str, length: usize) -> Result<(), BenchError> {
        let host = self.host;
        let path = url.split_once(&format!("//{host}"));
        let (_, path) = path.ok_or_else(|| BenchError::Peer("has another address".into()))?;
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n");
        let sent = self.lines.get_mut().write_all(head.as_bytes());
        sent.map_err(failed("write to"))
    }

    /// Reads an answer's head, which must be of success: how many bytes follow, if it says so.
    fn answer(&mut self) -> Result<Option<usize>, BenchError> {
        let (mut first, mut length) = (String::new(), None);
        let mut head = (&mut self.lines).take(HEAD_BYTES_MAX);
        loop {
            let mut line = String::new();
            head.read_line(&mut line).map_err(failed("read from"))?;
            let text = line.trim_end();
            if first.is_empty() {
                first = text.into();
            } else if let Some((name, value)) = text.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().ok();
            }
            if text.is_empty() {
                break;
            }
        }
        match first.split(' ').nth(1) {
            Some("200") => Ok(length),
            _ => Err(BenchError::Peer(format!("s3s-fs says {first:?}"))),
        }
    }
}

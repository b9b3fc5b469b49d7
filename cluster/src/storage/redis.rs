//! Objects on a server that speaks Redis's protocol.
//!
//! ```text
//!   <prefix><name>                 a hash: mark, bytes, part_bytes      the object is there, whole
//!   <prefix><name>:<mark>:<n>      strings, part_bytes each             its bytes
//! ```
//!
//! Each creation has parts of its own, by its mark, which go away after a day until one
//! transaction makes them last and sets the hash's fields, unless they are set: so of those that
//! create an object one wins, and there never is half of one.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use praas_runtime::swap::{
    Storage, StorageError, StorageUrl, StorageUrlError, name_check, prefix_check,
};
use redis::io::tcp::TcpSettings;
use redis::{
    Client, Connection, ConnectionAddr, IntoConnectionInfo, Pipeline, RedisConnectionInfo,
    RedisError, RedisResult, Value,
};

use super::{Pieces, nonce, number};

/// The options of a URL of kind `redis`.
const OPTIONS: &[&str] = &[
    "prefix",
    "db",
    "user",
    "password_file",
    "part_bytes",
    "attempts_max",
    "connect_timeout_ms",
    "timeout_ms",
];
const PORT: u16 = 6379;
/// Seconds after which the parts of a creation that never finished go away.
const UNFINISHED_S: u64 = 86_400;
/// Bytes of a last part that is sent with the transaction, to spare a question.
const TRANSACTION_MAX_BYTES: usize = 64 << 10;
/// Slices below this many bytes go out together.
const GATHER_BELOW_BYTES: usize = 64 << 10;
/// Keys that one step of a listing looks at, about.
const SCAN_COUNT: usize = 1000;
/// Connections that are kept for the next who needs one.
const IDLE_MAX: usize = 8;
/// Objects whose place is remembered: they never change.
const HEADS_MAX: usize = 4096;
/// Bytes that a file with a password may have.
const PASSWORD_MAX_BYTES: u64 = 4096;
const PASSWORD_ENV: &str = "PRAAS_REDIS_PASSWORD";
const USER_ENV: &str = "PRAAS_REDIS_USER";

/// Objects on a server.
pub struct RedisStorage {
    url: String,
    client: Client,
    prefix: String,
    part_bytes: usize,
    attempts_max: usize,
    connect_timeout: Duration,
    timeout: Duration,
    idle: Mutex<Vec<Connection>>,
    heads: Mutex<HashMap<String, Head>>,
}

/// Where an object's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Head {
    mark: String,
    bytes: u64,
    part_bytes: u64,
}

impl Head {
    fn parts(&self) -> u64 {
        self.bytes.div_ceil(self.part_bytes)
    }
}

impl RedisStorage {
    /// A server by its URL; it is not asked yet.
    ///
    /// # Errors
    /// The URL has something that cannot be, or the password cannot be read.
    pub fn new(url: &StorageUrl) -> Result<Self, StorageError> {
        url.options_check(OPTIONS)?;
        let ms =
            |name, default| number(url, name, default, 1..=3_600_000).map(Duration::from_millis);
        let info = address(url)?
            .into_connection_info()
            .map_err(|error| url.error(error.to_string()))?
            // The end of a part does not wait for the server to acknowledge what came before.
            .set_tcp_settings(TcpSettings::default().set_nodelay(true))
            .set_redis_settings(login(url)?);
        Ok(Self {
            url: url.to_string(),
            client: Client::open(info).map_err(|error| url.error(error.to_string()))?,
            prefix: url.option("prefix").unwrap_or("praas/").into(),
            part_bytes: number(url, "part_bytes", 8 << 20, 1 << 10..=256 << 20)? as usize,
            attempts_max: number(url, "attempts_max", 3, 1..=100)? as usize,
            connect_timeout: ms("connect_timeout_ms", 5_000)?,
            timeout: ms("timeout_ms", 60_000)?,
            idle: Mutex::default(),
            heads: Mutex::default(),
        })
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn part_key(&self, name: &str, mark: &str, part: u64) -> String {
        format!("{}{name}:{mark}:{part}", self.prefix)
    }

    fn connect(&self) -> RedisResult<Connection> {
        let connection = self
            .client
            .get_connection_with_timeout(self.connect_timeout)?;
        connection.set_read_timeout(Some(self.timeout))?;
        connection.set_write_timeout(Some(self.timeout))?;
        Ok(connection)
    }

    /// Asks once, on a connection that is idle or new.
    fn ask_once<T>(&self, ask: impl FnOnce(&mut Connection) -> RedisResult<T>) -> RedisResult<T> {
        let idle = lock(&self.idle).pop();
        let mut connection = idle.map_or_else(|| self.connect(), Ok)?;
        let answer = ask(&mut connection);
        match &answer {
            // Nobody knows what such a connection would say next, or whether others still work.
            Err(error) if is_lost(error) => lock(&self.idle).clear(),
            _ => {
                let mut idle = lock(&self.idle);
                if idle.len() < IDLE_MAX {
                    idle.push(connection);
                }
            }
        }
        answer
    }

    /// Asks what can be asked twice.
    fn ask<T>(
        &self,
        operation: &'static str,
        name: &str,
        ask: impl Fn(&mut Connection) -> RedisResult<T>,
    ) -> Result<T, StorageError> {
        let mut left = self.attempts_max;
        loop {
            left -= 1;
            match self.ask_once(&ask) {
                Ok(answer) => return Ok(answer),
                Err(error) if left > 0 && is_lost(&error) => {}
                Err(error) => return Err(failed(operation, name, error)),
            }
        }
    }

    /// Where an object is, as the server has it now.
    fn head(&self, operation: &'static str, name: &str) -> Result<Option<Head>, StorageError> {
        let mut ask = redis::cmd("HMGET");
        ask.arg(self.key(name))
            .arg(&["mark", "bytes", "part_bytes"]);
        let fields: (Option<String>, Option<u64>, Option<u64>) =
            self.ask(operation, name, |connection| ask.query(connection))?;
        let head = match fields {
            (Some(mark), Some(bytes), Some(part_bytes)) if part_bytes > 0 => Head {
                mark,
                bytes,
                part_bytes,
            },
            _ => {
                lock(&self.heads).remove(name);
                return Ok(None);
            }
        };
        let mut heads = lock(&self.heads);
        if heads.len() >= HEADS_MAX {
            heads.clear();
        }
        heads.insert(name.into(), head.clone());
        Ok(Some(head))
    }

    fn head_or_missing(&self, operation: &'static str, name: &str) -> Result<Head, StorageError> {
        self.head(operation, name)?
            .ok_or_else(|| StorageError::NotFound { name: name.into() })
    }

    /// Sends all parts, each to go away unless it is made to last; but not the last one if it is
    /// small, which can go with the transaction.
    fn parts_put(
        &self,
        name: &str,
        head: &Head,
        pieces: &mut Pieces<'_>,
    ) -> Result<Option<Vec<u8>>, StorageError> {
        for part in 0..head.parts() {
            let piece = pieces.next(self.part_bytes);
            let bytes = piece.iter().map(|slice| slice.len()).sum();
            if pieces.left == 0 && bytes <= TRANSACTION_MAX_BYTES {
                return Ok(Some(piece.concat()));
            }
            let key = self.part_key(name, &head.mark, part);
            self.ask("write", name, |connection| {
                part_set(connection, &key, bytes, &piece)
            })?;
        }
        Ok(None)
    }

    /// The transaction that makes an object be there; whose the object is then, and whether all
    /// parts of this attempt are there: a server that was restarted may have lost some.
    fn commit(
        &self,
        name: &str,
        head: &Head,
        last: Option<&[u8]>,
    ) -> Result<(String, bool), StorageError> {
        let key = self.key(name);
        let mut commit = redis::pipe();
        commit.atomic();
        let mut parts = head.parts();
        if let Some(last) = last {
            parts -= 1;
            commit
                .cmd("SET")
                .arg(self.part_key(name, &head.mark, parts))
                .arg(last)
                .ignore();
        }
        for part in 0..parts {
            let key = self.part_key(name, &head.mark, part);
            commit.cmd("PERSIST").arg(key).ignore();
        }
        let (bytes, part_bytes) = (head.bytes.to_string(), head.part_bytes.to_string());
        for (field, value) in [
            ("mark", &head.mark),
            ("bytes", &bytes),
            ("part_bytes", &part_bytes),
        ] {
            commit
                .cmd("HSETNX")
                .arg(&key)
                .arg(field)
                .arg(value)
                .ignore();
        }
        commit.cmd("HGET").arg(&key).arg("mark");
        self.parts_count(&mut commit, name, head);
        let mut left = self.attempts_max;
        loop {
            left -= 1;
            let error = match self.ask_once(|connection| commit.query::<(String, u64)>(connection))
            {
                Ok((mark, parts)) => return Ok((mark, head.parts().max(1) == parts)),
                Err(error) => error,
            };
            if !is_lost(&error) {
                return Err(failed("create", name, error));
            }
            // It may have been done, and the answer be lost.
            match self.head("create", name) {
                Ok(Some(there)) => {
                    let mut count = redis::pipe();
                    self.parts_count(&mut count, name, head);
                    let (parts,): (u64,) =
                        self.ask("create", name, |connection| count.query(connection))?;
                    return Ok((there.mark, head.parts().max(1) == parts));
                }
                _ if left > 0 => {}
                _ => return Err(failed("create", name, error)),
            }
        }
    }

    /// Asks how many parts are there; of an object without any, whether it is itself.
    fn parts_count(&self, pipeline: &mut Pipeline, name: &str, head: &Head) {
        let count = pipeline.cmd("EXISTS");
        for part in 0..head.parts() {
            count.arg(self.part_key(name, &head.mark, part));
        }
        if head.parts() == 0 {
            count.arg(self.key(name));
        }
    }

    fn parts_remove(&self, pipeline: &mut Pipeline, name: &str, head: &Head) {
        for part in 0..head.parts() {
            let key = self.part_key(name, &head.mark, part);
            pipeline.cmd("UNLINK").arg(key).ignore();
        }
    }

    /// Removes what a creation has made: its parts, and the hash if it has this creation's mark. One
    /// that asks again, since it has heard no answer, does not remove what another has created
    /// under the name meanwhile.
    fn remove(&self, operation: &'static str, name: &str, head: &Head) -> Result<(), StorageError> {
        let key = self.key(name);
        let mut look = redis::pipe();
        look.cmd("WATCH").arg(&key).ignore();
        look.cmd("HGET").arg(&key).arg("mark");
        let mut parts = redis::pipe();
        self.parts_remove(&mut parts, name, head);
        let mut whole = redis::pipe();
        whole.atomic().cmd("UNLINK").arg(&key).ignore();
        self.parts_remove(&mut whole, name, head);
        lock(&self.heads).remove(name);
        self.ask(operation, name, |connection| {
            let looked = look.query::<(Option<String>,)>(connection);
            if matches!(&looked, Ok((Some(mark),)) if *mark == head.mark) {
                // Nothing happens, and nothing is the answer, if the hash was changed since.
                match whole.query::<Value>(connection)? {
                    Value::Nil => {}
                    _ => return Ok(()),
                }
            } else {
                // A connection that looks after a key would refuse the next one's transaction.
                redis::cmd("UNWATCH").exec(connection)?;
                looked?;
            }
            match head.parts() {
                0 => Ok(()),
                _ => parts.exec(connection),
            }
        })
    }

    /// Reads a range that lies within the object.
    fn read_range(
        &self,
        name: &str,
        head: &Head,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), StorageError> {
        let end = offset + into.len() as u64;
        let mut ask = redis::pipe();
        let mut expected = Vec::new();
        for part in offset / head.part_bytes..end.div_ceil(head.part_bytes) {
            let start = part * head.part_bytes;
            let from = offset.max(start) - start;
            let to = end.min(start + head.part_bytes) - start;
            ask.cmd("GETRANGE")
                .arg(self.part_key(name, &head.mark, part))
                .arg(from)
                .arg(to - 1);
            expected.push((to - from) as usize);
        }
        let parts: Vec<Vec<u8>> = self.ask("read", name, |connection| ask.query(connection))?;
        let mut left = into;
        for (part, bytes) in parts.iter().zip(expected) {
            // An object without all of its parts is none.
            if part.len() != bytes {
                return Err(StorageError::NotFound { name: name.into() });
            }
            let (room, rest) = left.split_at_mut(bytes);
            room.copy_from_slice(part);
            left = rest;
        }
        Ok(())
    }

    /// Warns of a server that forgets.
    fn durable_check(&self) {
        let mut ask = redis::cmd("INFO");
        ask.arg("all");
        let info = self.ask("ask", "INFO", |connection| ask.query::<String>(connection));
        let Ok(info) = info else {
            return tracing::warn!("the Redis server does not say whether it keeps what it has");
        };
        let value = |name: &str| {
            let mut lines = info.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        };
        if value("aof_enabled") == Some("0") {
            tracing::warn!(
                "the Redis server has appendonly off: what is swapped out may be lost with it"
            );
        }
        let limited = value("maxmemory").is_some_and(|bytes| bytes != "0");
        let policy = value("maxmemory_policy").filter(|policy| *policy != "noeviction");
        if let Some(policy) = policy.filter(|_| limited) {
            tracing::warn!(
                policy,
                "the Redis server throws away what it has when memory is short: images may be lost"
            );
        }
    }
}

impl Storage for RedisStorage {
    fn put_new(&self, name: &str, parts: &[&[u8]]) -> Result<(), StorageError> {
        name_check(name)?;
        let exists = || StorageError::Exists { name: name.into() };
        let mut pieces = Pieces::new(parts);
        let head = Head {
            mark: nonce()?,
            bytes: pieces.left,
            part_bytes: self.part_bytes as u64,
        };
        // Only to spare the parts of an attempt that is in vain.
        if head.parts() > 1 && self.head("create", name)?.is_some() {
            return Err(exists());
        }
        let put = self.parts_put(name, &head, &mut pieces);
        let lasting = put.is_ok();
        let error = match put {
            // Who knows whether what fails here was done: its parts must stay.
            Ok(last) => match self.commit(name, &head, last.as_deref())? {
                (mark, true) if mark == head.mark => return Ok(()),
                (mark, false) if mark == head.mark => {
                    let text = "the server has lost parts that it had taken";
                    StorageError::Io {
                        operation: "create",
                        name: name.into(),
                        source: io::Error::other(text),
                    }
                }
                _ => exists(),
            },
            Err(error) => error,
        };
        if !lasting {
            // What is left goes away by itself.
            let mut remove = redis::pipe();
            self.parts_remove(&mut remove, name, &head);
            let _ = self.ask_once(|connection| remove.exec(connection));
            return Err(error);
        }
        // What was made to last does not, though it is no object without its place or its parts.
        if let Err(error) = self.remove("clean up", name, &head) {
            let mark = &head.mark;
            tracing::warn!(%error, name, mark, "parts of a creation in vain may stay on the server");
        }
        Err(error)
    }

    fn size(&self, name: &str) -> Result<u64, StorageError> {
        name_check(name)?;
        Ok(self.head_or_missing("look up", name)?.bytes)
    }

    fn read(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        name_check(name)?;
        let known = lock(&self.heads).get(name).cloned();
        let head = match known {
            Some(head) => head,
            None => self.head_or_missing("read", name)?,
        };
        let end = offset.saturating_add(into.len() as u64);
        if end > head.bytes {
            // It may be there no more.
            self.head_or_missing("read", name)?;
            return Err(StorageError::Short {
                name: name.into(),
                end,
            });
        }
        if into.is_empty() {
            return self.head_or_missing("read", name).map(drop);
        }
        self.read_range(name, &head, offset, into)
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
        prefix_check(prefix)?;
        let mut pattern = glob_escape(&self.key(prefix));
        pattern.push('*');
        let mut names = std::collections::BTreeSet::new();
        let mut cursor: u64 = 0;
        loop {
            let mut ask = redis::cmd("SCAN");
            ask.arg(cursor).arg("MATCH").arg(&pattern);
            ask.arg("COUNT").arg(SCAN_COUNT).arg("TYPE").arg("hash");
            let (next, keys): (u64, Vec<Vec<u8>>) =
                self.ask("list", prefix, |connection| ask.query(connection))?;
            let found = keys.iter().filter_map(|key| {
                let name = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?;
                name_check(name).is_ok().then(|| name.into())
            });
            names.extend(found);
            cursor = next;
            if cursor == 0 {
                return Ok(names.into_iter().collect());
            }
        }
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        name_check(name)?;
        let head = self.head_or_missing("delete", name)?;
        self.remove("delete", name, &head)
    }

    fn check(&self) -> Result<(), StorageError> {
        let ping = redis::cmd("PING");
        self.ask("reach it", &self.url, |connection| ping.exec(connection))?;
        self.durable_check();
        Ok(())
    }
}

/// Sets a part, to go away after a while. Its bytes go out from where they are, but for small
/// slices: as an argument of a command they would be copied twice.
fn part_set(
    connection: &mut Connection,
    key: &str,
    bytes: usize,
    piece: &[&[u8]],
) -> RedisResult<()> {
    let key_bytes = key.len();
    let head = format!("*5\r\n$3\r\nSET\r\n${key_bytes}\r\n{key}\r\n${bytes}\r\n");
    let mut gathered = head.into_bytes();
    for slice in piece {
        if slice.len() < GATHER_BELOW_BYTES {
            gathered.extend_from_slice(slice);
        }
        let large = slice.len() >= GATHER_BELOW_BYTES;
        if large || gathered.len() >= GATHER_BELOW_BYTES {
            if !gathered.is_empty() {
                connection.send_packed_command(&gathered)?;
                gathered.clear();
            }
            if large {
                connection.send_packed_command(slice)?;
            }
        }
    }
    let seconds = UNFINISHED_S.to_string();
    let tail = format!("\r\n$2\r\nEX\r\n${}\r\n{seconds}\r\n", seconds.len());
    gathered.extend_from_slice(tail.as_bytes());
    connection.send_packed_command(&gathered)?;
    connection.recv_response()?.extract_error().map(drop)
}

/// Where the server is.
fn address(url: &StorageUrl) -> Result<ConnectionAddr, StorageUrlError> {
    if url.scheme() == "redis+unix" {
        return match url.authority().is_empty() && url.path().is_absolute() {
            true => Ok(ConnectionAddr::Unix(url.path().into())),
            false => Err(url.error("it takes an absolute path: redis+unix:///path")),
        };
    }
    let authority = url.authority();
    let (host, port) = match authority.rsplit_once(':') {
        // A colon of an IPv6 address is none before a port.
        Some((host, port)) if !port.contains(']') => {
            let port = port.parse();
            (host, port.map_err(|_| url.error("its port is no number"))?)
        }
        _ => (authority, PORT),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(url.error("it names no server"));
    }
    Ok(match url.scheme() {
        #[cfg(feature = "tls")]
        "rediss" => ConnectionAddr::TcpTls {
            host: host.into(),
            port,
            insecure: false,
            tls_params: None,
        },
        _ => ConnectionAddr::Tcp(host.into(), port),
    })
}

/// Who we are to the server, and which of its databases is meant.
fn login(url: &StorageUrl) -> Result<RedisConnectionInfo, StorageError> {
    let path = url.path().to_str().unwrap_or("?").trim_matches('/');
    let db = match (url.scheme(), path) {
        ("redis+unix", _) | (_, "") => number(url, "db", 0, 0..=1 << 20)?,
        (_, path) => path
            .parse::<u32>()
            .map_err(|_| url.error("its path is not the number of a database"))?
            .into(),
    };
    let environment = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let password = match url.option("password_file") {
        None => environment(PASSWORD_ENV),
        Some(file) => {
            let text = password_read(Path::new(file)).map_err(|source| StorageError::Io {
                operation: "read the password",
                name: file.into(),
                source,
            })?;
            Some(text.trim_end_matches(['\r', '\n']).into())
        }
    };
    let user = url.option("user").map(String::from);
    let mut login = RedisConnectionInfo::default()
        .set_db(db as i64)
        .set_skip_set_lib_name();
    if let Some(password) = password {
        login = login.set_password(password);
        if let Some(user) = user.or_else(|| environment(USER_ENV)) {
            login = login.set_username(user);
        }
    }
    Ok(login)
}

fn password_read(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(PASSWORD_MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// A pattern that stands for this text only.
fn glob_escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if "*?[]^\\".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// Whether an answer may have been lost: then nobody knows what became of the question.
fn is_lost(error: &RedisError) -> bool {
    error.is_io_error() || error.is_timeout() || error.is_connection_dropped()
}

fn failed(operation: &'static str, name: &str, error: RedisError) -> StorageError {
    let name = name.into();
    let full = error.code() == Some("OOM") || error.to_string().contains("OOM ");
    let source = io::Error::other(error);
    match full {
        true => StorageError::Full {
            operation,
            name,
            source,
        },
        false => StorageError::Io {
            operation,
            name,
            source,
        },
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in there are connections and places that each stand for themselves.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> String {
        let error = RedisStorage::new(&url.parse().unwrap()).err();
        error.map_or(String::new(), |error| error.to_string())
    }

    #[test]
    fn urls_are_checked() {
        assert_eq!(refused("redis://[::1]:1/3?prefix=a"), "");
        assert_eq!(refused("redis+unix:///run/redis.sock?db=3"), "");
        assert!(refused("redis:///0").contains("names no server"));
        assert!(refused("redis://h:x/0").contains("port"));
        assert!(refused("redis://h/zero").contains("number of a database"));
        assert!(refused("redis://h/0?part_bytes=1").contains("part_bytes is 1"));
        assert!(refused("redis+unix://h/x").contains("absolute path"));
        let error = refused("redis://h?password_file=/none");
        assert!(error.contains("/none: cannot read the password"), "{error}");
    }

    #[test]
    fn patterns_stand_for_themselves() {
        assert_eq!(glob_escape("a/[b]*?^\\"), "a/\\[b\\]\\*\\?\\^\\\\");
    }
}

//! Every storage is held to every promise, and what servers do wrong is found out.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use praas_cluster::storage::storage_open;
use praas_runtime::swap::{Storage, StorageError, StorageUrl};
use praas_tests::storages::{self, Cut, Kind, Lab, hung_server};
use praas_transport::sync::atomic::{AtomicBool, Ordering};

macro_rules! storages {
    ($($module:ident => $kind:ident;)*) => {
        $(storages!(@promises $module, $kind,
            objects_are_created_once
            many_slices_are_one_object
            reads_are_exact
            listings_are_complete
            what_is_deleted_is_gone
            names_have_their_limits
            large_objects_are_whole
            one_of_many_creates
            processes_are_kept
            objects_are_written_through
        );)*
    };
    (@promises $module:ident, $kind:ident, $($promise:ident)*) => {
        mod $module {
            use super::*;
            $(#[test]
            fn $promise() {
                storages::hold(Kind::$kind, stringify!($promise), storages::$promise);
            })*
        }
    };
}

storages! {
    file => File;
    redis => Redis;
    s3 => S3;
}

/// An error and its causes.
fn text(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// Opens the storage behind a connection with a fault.
fn behind(cut: &Cut, lab: &Lab) -> std::sync::Arc<dyn Storage> {
    let server = lab.server.as_ref().unwrap();
    storage_open(&server.url_at(&cut.address().to_string())).unwrap()
}

/// A server that forgets parts before the object is made, as one does that starts anew without
/// them, makes the creation fail.
fn parts_that_are_lost_are_missed(lab: &Lab) {
    let storage = lab.storage();
    let server = lab.server.as_ref().unwrap();
    let password = std::fs::read_to_string(lab.url.option("password_file").unwrap()).unwrap();
    // Parts are strings; objects themselves are not.
    let forget = "local n = 0 for _, key in ipairs(redis.call('KEYS', '*')) do \
                  if redis.call('TYPE', key).ok == 'string' then \
                  n = n + redis.call('UNLINK', key) end end return n";
    let parts = vec![7; 65 << 20];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let forgetting = scope.spawn(|| {
            let mut forgotten = 0;
            while !done.load(Ordering::Relaxed) {
                let mut cli = std::process::Command::new("redis-cli");
                cli.args(["-h", "127.0.0.1", "-n", "1", "--no-auth-warning", "-a"])
                    .arg(password.trim())
                    .args([
                        "-p",
                        &server.address().port().to_string(),
                        "EVAL",
                        forget,
                        "0",
                    ]);
                let output = cli.output().expect("redis-cli");
                let text = String::from_utf8_lossy(&output.stdout);
                forgotten += text.trim().parse::<u64>().expect("a number");
            }
            forgotten
        });
        let mut missed = 0;
        for attempt in 0..3 {
            let name = format!("lost/{attempt}");
            match storage.put_new(&name, &[&parts]) {
                // Nothing was forgotten before it was there.
                Ok(()) => {}
                Err(error) => {
                    assert!(text(&error).contains("lost parts"), "{}", text(&error));
                    let gone = storage.size(&name).unwrap_err();
                    assert!(matches!(gone, StorageError::NotFound { .. }), "{gone:?}");
                    missed += 1;
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(forgetting.join().unwrap() > 0 && missed > 0);
    });
}

/// An answer that is lost, at any point of a creation, makes it neither fail nor happen twice.
fn lost_answers_are_looked_after(lab: &Lab) {
    let cut = Cut::start(lab.server.as_ref().unwrap().address());
    let storage = behind(&cut, lab);
    let direct = lab.storage();
    storage.check().unwrap();
    let large = vec![7; 17 << 20];
    for bytes in [&b"small"[..], &large] {
        for answers in 0.. {
            let name = format!("{}/{answers}", bytes.len());
            cut.swallow_after(answers);
            storage.put_new(&name, &[bytes]).unwrap();
            let swallowed = cut.swallowed();
            let mut back = vec![0; bytes.len()];
            direct.read(&name, 0, &mut back).unwrap();
            assert!(back == bytes, "{name} has other bytes");
            let again = storage.put_new(&name, &[bytes]).unwrap_err();
            assert!(matches!(again, StorageError::Exists { .. }), "{again:?}");
            if !swallowed {
                assert!(answers > 0, "nothing was cut");
                break;
            }
        }
    }
    // What is there already is not taken for ours.
    cut.swallow_after(0);
    let taken = storage.put_new("5/0", &[b"other"]).unwrap_err();
    assert!(matches!(taken, StorageError::Exists { .. }), "{taken:?}");
}

/// A deletion is tried again, since its answer is lost, after another has created the object anew.
fn what_a_successor_has_created_stays(lab: &Lab) {
    let cut = Cut::start(lab.server.as_ref().unwrap().address());
    let storage = behind(&cut, lab);
    let direct = lab.storage();
    let mut created_anew = 0;
    for bytes in [1, 20 << 20] {
        let old = vec![1; bytes];
        for answers in 0.. {
            let name = format!("{bytes}/{answers}");
            storage.put_new(&name, &[&old]).unwrap();
            let anew = Arc::new(AtomicBool::new(false));
            let (other, theirs, done) = (lab.storage(), name.clone(), Arc::clone(&anew));
            cut.swallow_then(answers, move || {
                if other.size(&theirs).is_err() {
                    other.put_new(&theirs, &[b"new"]).unwrap();
                    done.store(true, Ordering::Relaxed);
                }
            });
            storage.delete(&name).unwrap();
            let swallowed = cut.swallowed();
            let mut back = [0; 3];
            let read = direct.read(&name, 0, &mut back);
            match anew.load(Ordering::Relaxed) {
                true => {
                    read.unwrap();
                    assert_eq!(&back, b"new");
                    created_anew += 1;
                }
                false => assert!(matches!(read, Err(StorageError::NotFound { .. }))),
            }
            // The connections are as good as before.
            storage.put_new(&format!("{name}/after"), &[b"x"]).unwrap();
            if !swallowed {
                break;
            }
        }
    }
    assert!(created_anew >= 2);
}

#[test]
fn what_a_successor_has_created_stays_on_redis() {
    storages::hold(
        Kind::Redis,
        "successors",
        what_a_successor_has_created_stays,
    );
}

#[test]
fn parts_that_are_lost_are_missed_on_redis() {
    storages::hold(Kind::Redis, "lost parts", parts_that_are_lost_are_missed);
}

#[test]
fn lost_answers_are_looked_after_on_redis() {
    storages::hold(Kind::Redis, "lost answers", lost_answers_are_looked_after);
}

#[test]
fn lost_answers_are_looked_after_on_s3() {
    storages::hold(Kind::S3, "lost answers", lost_answers_are_looked_after);
}

#[test]
fn a_server_that_cannot_be_reached_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        "aws_access_key_id=i\naws_secret_access_key=geheim\n",
    )
    .unwrap();
    // A port that nobody listens on, and one where nobody answers.
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let hung = hung_server();
    for at in [closed, hung.local_addr().unwrap()] {
        for url in [
            format!("redis://{at}/0?attempts_max=1&timeout_ms=200&connect_timeout_ms=200"),
            format!(
                "s3://b?endpoint=http://{at}&timeout_ms=200&attempts_max=1&credentials={}",
                file.path().display()
            ),
        ] {
            let url: StorageUrl = url.parse().unwrap();
            let storage = storage_open(&url).unwrap();
            for error in [
                storage.check().unwrap_err(),
                storage.put_new("a", &[b"1"]).unwrap_err(),
                storage.size("a").unwrap_err(),
                storage.list("").unwrap_err(),
            ] {
                assert!(matches!(error, StorageError::Io { .. }), "{error:?}");
                assert!(!text(&error).contains("geheim"), "{error:?}");
            }
        }
    }
}

#[test]
fn who_is_not_let_in_hears_so() {
    for (kind, file, content, said) in [
        (
            Kind::Redis,
            "password_file",
            "wrong",
            "AuthenticationFailed",
        ),
        (
            Kind::S3,
            "credentials",
            "aws_access_key_id=testing\naws_secret_access_key=wrong",
            "SignatureDoesNotMatch",
        ),
    ] {
        storages::hold(kind, "refused", |lab| {
            let wrong = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(wrong.path(), content).unwrap();
            let url = lab.url.to_string();
            let (before, _) = url.split_once(&format!("{file}=")).unwrap();
            let url = format!("{before}{file}={}", wrong.path().display());
            let storage = storage_open(&url.parse().unwrap()).unwrap();
            let error = text(&storage.check().unwrap_err());
            assert!(error.contains(said), "{error}");
            assert!(!error.contains("secret_access_key"), "{error}");
            assert!(storage.put_new("a", &[]).is_err());
        });
    }
}

/// A server for which everything always goes well, whatever it is asked.
fn credulous_server() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut asked = Vec::new();
            let mut byte = [0];
            while !asked.ends_with(b"\r\n\r\n") && matches!(client.read(&mut byte), Ok(1)) {
                asked.push(byte[0]);
            }
            let answer = "HTTP/1.1 200 OK\r\nETag: \"e\"\r\nContent-Length: 0\r\n\
                          Connection: close\r\n\r\n";
            let _ = client.write_all(answer.as_bytes());
        }
    });
    address
}

#[test]
fn a_server_without_exclusive_creation_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        "aws_access_key_id=i\naws_secret_access_key=s\n",
    )
    .unwrap();
    let url = format!(
        "s3://b?endpoint=http://{}&credentials={}",
        credulous_server(),
        file.path().display()
    );
    let storage = storage_open(&url.parse().unwrap()).unwrap();
    for error in [
        storage.check().unwrap_err(),
        storage.put_new("a", &[b"1"]).unwrap_err(),
    ] {
        let error = text(&error);
        assert!(error.contains("cannot create exclusively"), "{error}");
        assert!(error.contains("If-None-Match"), "{error}");
    }
}

/// A server on which every object is there already, and which looks at no checksum: what it was
/// asked, by method and target.
fn careless_server(exclusive_parts: bool) -> (std::net::SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&asked);
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let Some((request, headers)) = request_read(&mut client) else {
                continue;
            };
            let fails = "412 Precondition Failed";
            let (status, body) = if request.starts_with("POST") && request.contains("uploads") {
                ("200 OK", "<R><UploadId>u</UploadId></R>")
            } else if request.starts_with("POST") {
                let taken = "<R><ETag>e</ETag></R>";
                (if exclusive_parts { fails } else { "200 OK" }, taken)
            } else if request.starts_with("PUT") && headers.contains("if-none-match") {
                (fails, "")
            } else {
                ("200 OK", "")
            };
            all.lock().unwrap().push(request);
            let answer = format!(
                "HTTP/1.1 {status}\r\nETag: \"e\"\r\nLast-Modified: Thu, 26 Nov 2026 12:00:00 GMT\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = client.write_all(answer.as_bytes());
        }
    });
    (address, asked)
}

/// The first line of a request, and its headers in lower case; its body is read, too.
fn request_read(client: &mut std::net::TcpStream) -> Option<(String, String)> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let (request, headers) = head.split_once("\r\n")?;
    let headers = headers.to_ascii_lowercase();
    let length = headers.split("content-length: ").nth(1);
    let length = length.and_then(|rest| rest.lines().next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    client.read_exact(&mut body).ok()?;
    let request = request.trim_end_matches(" HTTP/1.1");
    Some((request.into(), headers))
}

#[test]
fn a_server_without_exclusive_uploads_in_parts_is_refused_at_the_start() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        "aws_access_key_id=i\naws_secret_access_key=s\n",
    )
    .unwrap();
    let opened = |exclusive_parts, options: &str| {
        let (address, asked) = careless_server(exclusive_parts);
        let url = format!(
            "s3://b?endpoint=http://{address}&credentials={}{options}",
            file.path().display()
        );
        (storage_open(&url.parse().unwrap()).unwrap(), asked)
    };
    let (storage, _) = opened(false, "");
    let error = text(&storage.check().unwrap_err());
    assert!(error.contains("completion of an upload"), "{error}");
    // Who uploads nothing in parts does not mind.
    let (storage, asked) = opened(false, "&whole_max_bytes=5368709120");
    storage.check().unwrap();
    let asked = asked.lock().unwrap();
    assert!(
        !asked.iter().any(|asked| asked.contains("uploads")),
        "{asked:?}"
    );
    // It has taken bytes that are not those of their checksum, which are taken away again.
    for hash in ["crc64nvme", "sha256"] {
        let (storage, asked) = opened(true, &format!("&payload_hash={hash}"));
        storage.check().unwrap();
        let asked = asked.lock().unwrap();
        let put = asked.iter().position(|asked| asked == "PUT /b/~damaged");
        let deleted = asked.iter().rposition(|asked| asked == "POST /b?delete");
        assert!(put.is_some() && put < deleted, "{asked:?}");
    }
}

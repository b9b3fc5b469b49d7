//! A server's connection with a fault: one answer that never comes back, or a server that is lost.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// Forwards connections to a server, and cuts one when an answer is on its way, or all of them.
pub struct Cut {
    address: SocketAddr,
    left: Arc<Mutex<Left>>,
}

/// What still passes; `None`: everything.
#[derive(Default)]
struct Left {
    answers: Option<Answers>,
    /// Bytes to the server; with none left it is out of reach.
    bytes: Option<u64>,
}

struct Answers {
    left: u64,
    /// What happens before whoever waits for the next one learns that it does not come.
    then: Box<dyn FnOnce() + Send>,
}

impl Left {
    fn is_lost(&self) -> bool {
        self.bytes == Some(0)
    }
}

impl Cut {
    /// Listens for the server at `address`.
    ///
    /// # Panics
    /// There is no port.
    pub fn start(address: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let cut = Self {
            address: listener.local_addr().expect("an address"),
            left: Arc::default(),
        };
        let left = Arc::clone(&cut.left);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(address).expect("the server");
                let left = Arc::clone(&left);
                std::thread::spawn(move || forward(&client, &server, &left));
            }
        });
        cut
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on this many answers pass; the next is swallowed, and all pass after that.
    pub fn swallow_after(&self, answers: u64) {
        self.swallow_then(answers, || {});
    }

    /// The same, and something happens before the connection is cut.
    pub fn swallow_then(&self, answers: u64, then: impl FnOnce() + Send + 'static) {
        let then = Box::new(then);
        lock(&self.left).answers = Some(Answers {
            left: answers,
            then,
        });
    }

    /// From now on this many bytes reach the server; then it is lost, until it is mended.
    pub fn lost_after(&self, bytes: u64) {
        lock(&self.left).bytes = Some(bytes);
    }

    /// The server is back; whether it was lost.
    pub fn mend(&self) -> bool {
        let mut left = lock(&self.left);
        let was = left.is_lost();
        left.bytes = None;
        was
    }

    /// Whether the answer was swallowed; if not, none will be.
    pub fn swallowed(&self) -> bool {
        lock(&self.left).answers.take().is_none()
    }
}

fn forward(client: &TcpStream, server: &TcpStream, left: &Mutex<Left>) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            copy(client, server, |bytes| {
                let mut left = lock(left);
                left.bytes = left
                    .bytes
                    .map(|left| left.saturating_sub(bytes.len() as u64));
                !left.is_lost()
            });
            let lost = lock(left).is_lost();
            // A server that is lost is lost for those who wait for an answer, too.
            let how = if lost {
                Shutdown::Both
            } else {
                Shutdown::Write
            };
            let _ = server.shutdown(how);
        });
        copy(server, client, |_| {
            let mut left = lock(left);
            if left.is_lost() {
                return false;
            }
            let last = left.answers.take_if(|answers| answers.left == 0);
            if let Some(more) = &mut left.answers {
                more.left -= 1;
            }
            drop(left);
            match last {
                Some(last) => {
                    (last.then)();
                    false
                }
                None => true,
            }
        });
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    });
}

/// Copies while it may; a read is an answer, as far as small ones go.
fn copy(mut from: &TcpStream, mut to: &TcpStream, passes: impl Fn(&[u8]) -> bool) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        if !passes(&bytes[..read]) || to.write_all(&bytes[..read]).is_err() {
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

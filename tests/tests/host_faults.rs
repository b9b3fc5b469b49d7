//! What goes wrong around a host: a clear error for who caused it, and the process serves on.
//!
//! ```text
//!   cargo test -p praas-tests --test host_faults -- --nocapture kill     prints how long death
//!                                                                       takes to be noticed
//! ```

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use praas_runtime::client::{CallOptions, Client, ClientConfig};
use praas_runtime::invocation::InvokeError;
use praas_tests::lab::{Lab, LabHost, PATIENCE, object_wait};
use praas_transport::wire::{Capabilities, Dialler, Local};
use praas_transport::{
    Address, Credential, HostId, Identity, Incarnation, Secret, TransportKind, WaitMode,
};

fn lab() -> Lab {
    Lab::new(env!("CARGO_BIN_EXE_praas"))
}

const KINDS: [TransportKind; 3] = [TransportKind::Shm, TransportKind::Unix, TransportKind::Tcp];

/// Asserts that a host serves, over both transports, to clients that it has not seen.
fn serves(lab: &Lab) {
    for kind in KINDS {
        let mut client = lab.client(kind);
        assert_eq!(client.invoke("p", "echo", b"on").unwrap(), b"on", "{kind}");
    }
}

/// Kills a host while it runs an invocation; how long until the caller knows.
fn killed_during_an_invocation(kind: TransportKind, wait: WaitMode, state_bytes: u64) -> Duration {
    let lab = lab();
    let mut host = lab.start("p");
    let mut config = lab.client_config(kind);
    config.wait = wait;
    let mut client = Client::new(config).unwrap();
    if state_bytes > 0 {
        let () = client.invoke_value("p", "fills", &state_bytes).unwrap();
    }
    let waits = client.function("p", "waits").unwrap();
    let call = client.submit(waits, b"", CallOptions::default()).unwrap();
    object_wait(&mut client, "p", "waiting");
    let killed = Instant::now();
    host.kill();
    let outcome = client.wait(call);
    let took = killed.elapsed();
    assert_eq!(outcome.err(), Some(InvokeError::OutcomeUnknown));
    host.killed_wait();
    assert_eq!(lab.leftovers(), Vec::<String>::new());
    println!(
        "kill -9 over {kind}, {wait:?}, {} MiB of state: the caller knows after {took:?}",
        state_bytes >> 20
    );
    took
}

#[test]
fn kill_9_is_an_error_to_the_caller() {
    for kind in KINDS {
        for wait in [WaitMode::Hot, WaitMode::Warm] {
            killed_during_an_invocation(kind, wait, 0);
        }
    }
}

#[test]
fn kill_9_with_a_gibibyte_of_state_is_an_error_to_the_caller() {
    for kind in KINDS {
        for wait in [WaitMode::Hot, WaitMode::Warm] {
            killed_during_an_invocation(kind, wait, 1 << 30);
        }
    }
}

/// A process with small limits.
fn small_host(lab: &Lab) -> LabHost {
    let started = lab.start_with("p", |start| {
        start.settings.mailbox_messages_max = 2;
        start.settings.mailbox_max_bytes = 1 << 20;
        start.settings.transport.message_max_bytes = 4 << 20;
    });
    started.unwrap()
}

#[test]
fn a_full_mailbox_is_an_error_and_has_room_again() {
    let lab = lab();
    let host = small_host(&lab);
    for kind in KINDS {
        let mut client = lab.client(kind);
        let mut put = |key: &str, len: usize| {
            client.message_put("p", key, &vec![7; len], CallOptions::default())
        };
        put("a", 1).unwrap();
        put("b", 1).unwrap();
        let full = || Err(InvokeError::MailboxFull("p".into()));
        assert_eq!(put("c", 1), full());
        // A large one is refused before its bytes are sent.
        assert_eq!(put("c", 500_000), full());
        for key in ["a", "b"] {
            let take = praas_runtime::process::MessageTakeInput {
                source: praas_runtime::mailbox::Source::Any,
                key: key.into(),
            };
            let mut taker = lab.client(kind);
            let taken: Option<(String, Vec<u8>)> = taker
                .invoke_value("p", praas_runtime::process::MESSAGE_TAKE, &take)
                .unwrap();
            assert_eq!(taken.unwrap().1, [7]);
        }
        put("go", 500_000).unwrap();
        let taken = lab.client(kind).invoke("p", "waits", b"").unwrap();
        assert_eq!(taken, [7; 500_000]);
        serves(&lab);
    }
    drop(host);
}

#[test]
fn an_oversized_message_is_an_error() {
    let lab = lab();
    let host = small_host(&lab);
    for kind in KINDS {
        let mut client = lab.client(kind);
        let put = client.message_put("p", "k", &vec![0; 2 << 20], CallOptions::default());
        assert!(
            matches!(put, Err(InvokeError::TooLarge(_))),
            "{kind}: {put:?}"
        );
        // Above what the process takes at all, which the client does not know.
        let input = vec![0; 5 << 20];
        let invoked = client.invoke("p", "length", &input);
        assert!(
            matches!(invoked, Err(InvokeError::TooLarge(_))),
            "{kind}: {invoked:?}"
        );
        // Above what the client sends at all.
        let mut config = lab.client_config(kind);
        config.transport.message_max_bytes = 1000;
        let mut client = Client::new(config).unwrap();
        let invoked = client.invoke("p", "length", &vec![0; 100_000]);
        let Err(InvokeError::TooLarge(text)) = invoked else {
            panic!("{kind}: {invoked:?}");
        };
        assert!(text.contains("limit of 1000 bytes"), "{kind}: {text}");
        // A result above what the client takes.
        let mut other = lab.client(kind);
        other
            .message_put("p", "go", &vec![0; 500_000], CallOptions::default())
            .unwrap();
        let invoked = client.invoke("p", "waits", b"");
        let Err(InvokeError::TooLarge(text)) = invoked else {
            panic!("{kind}: {invoked:?}");
        };
        assert!(text.contains("limit of 1000"), "{kind}: {text}");
        serves(&lab);
    }
    drop(host);
}

#[test]
fn unknown_and_panicking_functions_are_errors() {
    let lab = lab();
    let host = lab.start("p");
    for kind in KINDS {
        let mut client = lab.client(kind);
        let unknown = client.invoke("p", "nope", b"");
        assert_eq!(unknown, Err(InvokeError::UnknownFunction("nope".into())));
        // More often than there are workers.
        for _ in 0..10 {
            let panicked = client.invoke("p", "panics", b"123");
            let text = "3 bytes are too many".to_string();
            assert_eq!(panicked, Err(InvokeError::Panicked(text)));
        }
        let unknown = client.invoke("q", "noop", b"");
        assert!(
            matches!(unknown, Err(InvokeError::Unavailable { .. })),
            "{unknown:?}"
        );
        serves(&lab);
    }
    drop(host);
}

/// What a client with these settings hears, which is to take less than it would try again for.
fn refusal(config: ClientConfig) -> String {
    let begun = Instant::now();
    let patience = config.limits.reconnect_for;
    let refused = Client::new(config).unwrap().invoke("p", "noop", b"");
    assert!(begun.elapsed() < patience, "refused after retries");
    match refused {
        Err(InvokeError::Unavailable { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn tickets_that_are_not_good_are_refused_with_the_reason() {
    let lab = lab();
    let host = lab.start("p");
    let other = Secret::generate().unwrap();
    for kind in KINDS {
        let with = |credential: Credential| {
            let mut config = lab.client_config(kind);
            config.credential = credential;
            // Long after this test has failed.
            config.limits.reconnect_for = PATIENCE;
            refusal(config)
        };
        let wrong = with(Credential::issue(&other, &lab.ticket()));
        assert!(wrong.contains("proof"), "{kind}: {wrong}");
        let mut expired = lab.ticket();
        expired.expires_unix_ms = 1_000;
        let expired = with(Credential::issue(lab.secret(), &expired));
        assert!(expired.contains("ticket expired"), "{kind}: {expired}");
        let mut foreign = lab.ticket();
        foreign.application = "other".into();
        let foreign = with(Credential::issue(&other, &foreign));
        let told = foreign.contains("ticket is for another application");
        assert!(told, "{kind}: {foreign}");
        serves(&lab);
    }
    drop(host);
}

/// A bare connection to where a host listens.
enum Raw {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Raw {
    fn connect(address: &Address) -> Self {
        match address {
            Address::Tcp(at) | Address::Verbs(at) => {
                let stream = TcpStream::connect(at).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                Self::Tcp(stream)
            }
            Address::Shm { name, .. } | Address::Unix { name, .. } => {
                let at = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
                let stream = UnixStream::connect_addr(&at).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                Self::Unix(stream)
            }
            Address::Mem(_) => unreachable!("hosts do not listen within themselves"),
        }
    }

    /// Sends bytes; whether the other side was still there.
    fn send(&mut self, bytes: &[u8]) -> bool {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes),
            Self::Unix(stream) => stream.write_all(bytes),
        }
        .is_ok()
    }

    /// Ends our side, and reads until the other side ends its.
    fn rest(mut self) -> Vec<u8> {
        // It may have hung up already, with our bytes unread.
        let _ = match &self {
            Self::Tcp(stream) => stream.shutdown(std::net::Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(std::net::Shutdown::Write),
        };
        let mut rest = Vec::new();
        let ended = match &mut self {
            Self::Tcp(stream) => stream.read_to_end(&mut rest),
            Self::Unix(stream) => stream.read_to_end(&mut rest),
        };
        let timeout = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
        assert!(!ended.is_err_and(|error| timeout(&error)), "no end");
        rest
    }
}

/// The first bytes of a client's handshake.
fn hello(lab: &Lab) -> Vec<u8> {
    let local = Local {
        identity: Identity {
            application: praas_tests::lab::APPLICATION.into(),
            name: "".into(),
            incarnation: Incarnation(0),
            client_id: 7,
        },
        caps: Capabilities::default(),
        nonce: [9; 16],
    };
    let credential = Credential::issue(lab.secret(), &lab.ticket());
    Dialler::start(local, &credential, Incarnation(0), HostId::local()).0
}

#[test]
fn a_client_of_another_version_is_told_which_is_spoken() {
    let lab = lab();
    let host = lab.start("p");
    for address in &host.addresses {
        let mut hello = hello(&lab);
        // Length, type and magic come before the two versions.
        let at = 2 + 1 + 8;
        assert_eq!(hello[at..at + 4], [1, 0, 1, 0]);
        hello[at] = 9;
        hello[at + 2] = 9;
        let mut raw = Raw::connect(address);
        assert!(raw.send(&hello));
        let answer = raw.rest();
        let text = String::from_utf8_lossy(&answer);
        let told = "this side speaks 1, the dialler 9 to 9";
        assert!(text.contains(told), "{address}: {text}");
    }
    serves(&lab);
}

#[test]
fn random_bytes_on_every_socket_harm_nobody() {
    let seed = match std::env::var("PRAAS_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => fastrand::u64(..),
    };
    println!("PRAAS_SEED={seed}");
    let lab = lab();
    let mut host = lab.start("p");
    let mut random = fastrand::Rng::with_seed(seed);
    // Somebody who was there before is not to notice.
    let mut clients = KINDS.map(|kind| lab.client(kind));
    for round in 0..200 {
        for address in &host.addresses {
            let mut bytes = vec![0; random.usize(0..4096)];
            random.fill(&mut bytes);
            // From nothing but noise to a hello that is whole, then noise.
            let mut hello = hello(&lab);
            match round % 4 {
                0 => hello.clear(),
                1 => hello.truncate(random.usize(0..hello.len())),
                2 => {
                    let at = random.usize(0..hello.len());
                    hello[at] ^= 1 << random.u8(0..8);
                }
                _ => {}
            }
            let mut raw = Raw::connect(address);
            if raw.send(&hello) {
                raw.send(&bytes);
            }
            raw.rest();
        }
        for client in &mut clients {
            assert_eq!(client.invoke("p", "echo", b"on").unwrap(), b"on");
        }
    }
    serves(&lab);
    assert!(host.is_running(), "seed {seed}");
    assert!(!host.log_text().contains("panicked"), "{}", host.log_text());
}

#[test]
fn what_a_client_is_owed_is_kept_while_it_has_any_channel() {
    let lab = lab();
    let started = lab.start_with("p", |start| start.settings.sessions_max = 1);
    let host = started.unwrap();
    for (kind, first) in KINDS.into_iter().zip([10, 20, 30]) {
        let as_client = |client_id| {
            let mut config = lab.client_config(kind);
            let mut ticket = lab.ticket();
            ticket.client_id = client_id;
            config.credential = Credential::issue(lab.secret(), &ticket);
            Client::new(config).unwrap()
        };
        let mut client = as_client(first);
        assert_eq!(client.invoke("p", "echo", b"1"), Ok(b"1".to_vec()));
        // Another channel of the same client comes and goes, and then others want its place.
        let mut again = as_client(first);
        let _ = again.invoke("p", "echo", b"2");
        drop(again);
        for other in 1..4 {
            let mut other = as_client(first + other);
            assert_eq!(other.invoke("p", "echo", b"3"), Ok(b"3".to_vec()));
        }
        let deadline = Instant::now() + PATIENCE / 2;
        let function = client.function("p", "echo").unwrap();
        let options = CallOptions {
            deadline: Some(deadline),
            ..CallOptions::default()
        };
        let call = client.submit(function, b"4", options).unwrap();
        assert_eq!(*client.wait(call).unwrap(), *b"4", "{kind}");
    }
    drop(host);
}

#[test]
fn connections_that_say_nothing_are_ended() {
    let lab = lab();
    let started = lab.start_with("p", |start| {
        start.settings.transport.handshake_timeout_ms = 200;
    });
    let host = started.unwrap();
    for address in &host.addresses {
        let mut silent = Raw::connect(address);
        silent.send(&hello(&lab)[..3]);
        let mut end = [0; 256];
        // A refusal may come first; then the end does.
        loop {
            let read = match &mut silent {
                Raw::Tcp(stream) => stream.read(&mut end),
                Raw::Unix(stream) => stream.read(&mut end),
            };
            match read {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                    break;
                }
            }
        }
    }
    serves(&lab);
}

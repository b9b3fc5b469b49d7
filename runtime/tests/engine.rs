//! Invocations of a process in this OS process, over every transport.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use praas_runtime::client::{CallOptions, Client, ClientConfig, Directory};
use praas_runtime::directory::Resolved;
use praas_runtime::function::Registry;
use praas_runtime::invocation::InvokeError;
use praas_runtime::prelude::*;
use praas_runtime::process::{Process, ProcessConfig, ProcessSettings};
use praas_transport::{
    Credential, Incarnation, Keyring, Kinds, Listen, Role, Secret, Ticket, UnixPlace, WaitMode,
};

#[praas_runtime::function(short)]
fn noop() {}

#[praas_runtime::function]
fn echo<'a>(context: &'a Context, input: &[u8]) -> Result<Output<'a>, FunctionError> {
    let mut output = context.output(input.len())?;
    output.copy_from_slice(input);
    Ok(output)
}

#[praas_runtime::function]
fn add(_context: &Context, (left, right): (u64, u64)) -> Result<u64, FunctionError> {
    left.checked_add(right)
        .ok_or_else(|| FunctionError::new("too large"))
}

#[praas_runtime::function]
fn panics(input: &[u8]) -> Vec<u8> {
    panic!("{} bytes are too many", input.len())
}

/// Ends once a message under "go" is there: how a test knows that a function runs.
#[praas_runtime::function]
fn waits(context: &Context) -> Result<Vec<u8>, FunctionError> {
    context.state_put("waiting", b"")?;
    Ok(context.message_get(None, "go", None)?.payload.to_vec())
}

/// Waits for a message, and spins then until it is cancelled.
#[praas_runtime::function]
fn waits_then_spins(context: &Context) -> Result<(), FunctionError> {
    context.state_put("waiting", b"")?;
    context.message_get(None, "go", None)?;
    spins_on(context)
}

/// Spins until it is cancelled, without ever waiting in a call.
#[praas_runtime::function]
fn spins(context: &Context) -> Result<(), FunctionError> {
    spins_on(context)
}

fn spins_on(context: &Context) -> Result<(), FunctionError> {
    context.state_put("spinning", b"")?;
    while !context.cancelled() {
        std::thread::yield_now();
    }
    Err(FunctionError::from(CallError::Cancelled))
}

/// Invokes itself locally, `depth` times.
#[praas_runtime::function]
fn nests(context: &Context, depth: u32) -> Result<u32, FunctionError> {
    match depth {
        0 => Ok(0),
        depth => Ok(context.invoke_value::<u32, u32>("", "nests", &(depth - 1))? + 1),
    }
}

/// Objects that are written without copying, and one that is changed as a value.
#[praas_runtime::function]
fn shares(context: &Context) -> Result<u64, FunctionError> {
    context.state_put("filled", &[7; 100_000])?;
    let none = || FunctionError::new("no view");
    let view = context.state_view("filled")?.ok_or_else(none)?;
    assert!(context.state_put_view("shared", &view)? > view.version());
    let shared = context.state_view("shared")?.ok_or_else(none)?;
    assert_eq!((shared.as_ptr(), shared.len()), (view.as_ptr(), 100_000));
    context.state_put("filled", b"other")?;
    assert!(view.iter().all(|byte| *byte == 7));
    assert!(context.state_put_view("", &view).is_err());
    let add = |count: Option<u64>| count.unwrap_or(40) + 1;
    context.state_update_value("count", add)?;
    Ok(context.state_update_value("count", add)?)
}

/// Writes a file, or (nothing to write) reads it.
#[praas_runtime::function]
fn files(context: &Context, text: String) -> Result<String, FunctionError> {
    let path = context.state_dir()?.join("notes.txt");
    if !text.is_empty() {
        std::fs::write(&path, &text)?;
    }
    Ok(std::fs::read_to_string(path)?)
}

#[praas_runtime::function]
fn objects(context: &Context) -> Result<Vec<String>, FunctionError> {
    context.state_put("b/1", b"one")?;
    context.state_append("b/2", b"tw")?;
    context.state_append("b/2", b"o")?;
    let version = context.state_put("a", b"old")?;
    let view = context
        .state_view("a")?
        .ok_or_else(|| FunctionError::new("no view"))?;
    assert_eq!(
        context.state_compare_swap("a", version + 9, b"never")?,
        Err(version)
    );
    assert!(context.state_compare_swap("a", version, b"new")?.is_ok());
    assert_eq!((&*view, view.version()), (&b"old"[..], version));
    assert_eq!(context.state_get("a")?.as_deref(), Some(&b"new"[..]));
    assert!(context.state_delete("a")? && !context.state_delete("a")?);
    let listed = context.state_list("b/", None, 10)?;
    Ok(listed
        .into_iter()
        .map(|entry| format!("{} {}", entry.key, entry.bytes))
        .collect())
}

/// Adds to the object `sum`, in its memory; refuses zero.
#[praas_runtime::function]
fn sums(context: &Context, term: u64) -> Result<(), FunctionError> {
    context.state_update("sum", 8, |old, new| {
        if term == 0 {
            return Err(CallError::BadArgument("nothing to add".into()));
        }
        let old = old.try_into().map_or(0, u64::from_le_bytes);
        new.copy_from_slice(&(old + term).to_le_bytes());
        Ok(())
    })?;
    Ok(())
}

/// Writes `large` anew: so many bytes, each by one more than the first one before.
#[praas_runtime::function]
fn renews(context: &Context, bytes: u64) -> Result<Option<String>, FunctionError> {
    let renewed = context.state_update("large", bytes as usize, |old, new| {
        new.fill(old.first().map_or(1, |byte| byte + 1));
        Ok(())
    });
    match renewed {
        Ok(_) => Ok(None),
        Err(CallError::LimitReached(text)) => Ok(Some(text)),
        Err(error) => Err(error.into()),
    }
}

/// Tells this process and one that is not there; what became of it.
#[praas_runtime::function]
fn broadcasts(context: &Context) -> Result<Vec<String>, FunctionError> {
    let nobody = context.message_broadcast(None, "news", b"to nobody")?;
    assert!(nobody.is_empty(), "{nobody:?}");
    let long = context.message_broadcast(Some(&["p"]), &"k".repeat(256), b"");
    assert!(matches!(long, Err(CallError::BadArgument(_))), "{long:?}");
    let to = ["q", "p"];
    let told = context.message_broadcast(Some(&to), "news", b"big news")?;
    let got = context.message_try(Some("p"), "news")?;
    assert_eq!(
        got.as_ref().map(|got| &*got.payload),
        Some(&b"big news"[..])
    );
    Ok(told
        .into_iter()
        .map(|Told { process, outcome }| match outcome {
            Ok(()) => format!("{process} has it"),
            Err(error) => format!("{process}: {error}"),
        })
        .collect())
}

praas_runtime::module!(
    static "tests",
    [
        noop, echo, add, panics, waits, spins, waits_then_spins, nests, objects, shares, files, sums, renews,
        broadcasts
    ]
);

fn start(listen: Listen, settings: ProcessSettings) -> (Process, Client) {
    let (process, config) = start_from(listen, settings, None);
    (process, Client::new(config).unwrap())
}

fn start_from(
    listen: Listen,
    settings: ProcessSettings,
    restore: Option<praas_runtime::swap::ProcessImage>,
) -> (Process, ClientConfig) {
    let secret = Secret::generate().unwrap();
    let ring = Keyring::new();
    ring.insert("app", 1, secret.clone());
    let ticket = |role| Ticket {
        application: "app".into(),
        role,
        client_id: 0,
        expires_unix_ms: u64::MAX,
        key_id: 1,
    };
    let mut registry = Registry::new();
    registry.module_add(module()).unwrap();
    let wait = settings.wait;
    let process = Process::start(ProcessConfig {
        application: "app".into(),
        process: "p".into(),
        incarnation: Incarnation(1),
        listen: vec![listen],
        authenticator: Arc::new(ring),
        credential: Credential::issue(&secret, &ticket(Role::Process)),
        directory: Directory::Fixed(BTreeMap::new()),
        transports: Kinds::all(),
        settings,
        registry,
        restore,
        persist: None,
    })
    .unwrap();
    let resolved = Resolved {
        incarnation: Incarnation(1),
        addresses: process.addresses().to_vec(),
    };
    let mut config = ClientConfig::new(
        Directory::Fixed([("p".to_string(), resolved)].into()),
        Credential::issue(&secret, &ticket(Role::Client)),
    );
    config.wait = wait;
    (process, config)
}

/// Runs a body on a process of two workers over every transport.
fn over_all(wait: WaitMode, body: impl Fn(&str, &Process, &mut Client)) {
    for (name, listen) in [
        (
            "mem",
            Listen::Mem(format!("engine-{:?}", std::thread::current().id())),
        ),
        ("shm", Listen::Shm { name: None }),
        ("unix", Listen::Unix(UnixPlace::Abstract(None))),
        ("tcp", Listen::Tcp("127.0.0.1:0".parse().unwrap())),
    ] {
        let settings = ProcessSettings {
            wait,
            workers: 2,
            ..Default::default()
        };
        let (process, mut client) = start(listen, settings);
        body(name, &process, &mut client);
        process.stop();
    }
}

/// Asks until a state object is there.
fn object_wait(client: &mut Client, key: &str) {
    let until = Instant::now() + Duration::from_secs(20);
    while client
        .invoke("p", "praas.state.get", key.as_bytes())
        .is_err()
    {
        assert!(Instant::now() < until, "the function has not begun");
    }
}

#[test]
fn bytes_of_any_size_come_back() {
    for (wait, rounds) in [(WaitMode::Warm, 200), (WaitMode::Hot, 200)] {
        over_all(wait, |name, _, client| {
            let noop = client.function("p", "noop").unwrap();
            for _ in 0..rounds {
                client
                    .call(noop, b"12345678", CallOptions::default())
                    .unwrap();
            }
            for size in [0, 1, 100, 1000, 20_000, 100_000, 5_000_000] {
                let bytes = vec![size as u8; size];
                assert!(
                    client.invoke("p", "echo", &bytes).unwrap() == bytes,
                    "{name} {size}"
                );
            }
        });
    }
}

#[test]
fn failures_are_told_and_the_process_serves_on() {
    over_all(WaitMode::Warm, |_, _, client| {
        let unknown = client.invoke("p", "nope", b"");
        assert_eq!(unknown, Err(InvokeError::UnknownFunction("nope".into())));
        let panicked = client.invoke("p", "panics", b"123");
        assert_eq!(
            panicked,
            Err(InvokeError::Panicked("3 bytes are too many".into()))
        );
        let sum: u64 = client.invoke_value("p", "add", &(2u64, 3u64)).unwrap();
        assert_eq!(sum, 5);
        let failed = client.invoke_value::<_, u64>("p", "add", &(u64::MAX, 1u64));
        assert_eq!(failed, Err(InvokeError::Function("too large".into())));
        let Err(InvokeError::Function(text)) = client.invoke("p", "add", b"") else {
            panic!("no input is no pair");
        };
        assert!(
            text.starts_with("the input of 'add': cannot decode"),
            "{text}"
        );
        assert_eq!(client.invoke_value::<_, u32>("p", "nests", &10u32), Ok(10));
        let deep = client.invoke_value::<_, u32>("p", "nests", &100_000u32);
        assert!(matches!(deep, Err(InvokeError::Exhausted(_))), "{deep:?}");
        assert_eq!(client.invoke("p", "echo", b"on").unwrap(), b"on");
    });
}

/// Numbers of functions end at 4,096 on a channel; a shared client comes to that by names alone.
#[test]
fn a_client_may_use_more_names_than_there_are_numbers() {
    let settings = ProcessSettings {
        wait: WaitMode::Warm,
        workers: 2,
        ..Default::default()
    };
    let (process, mut client) = start(Listen::Shm { name: None }, settings);
    for number in 0..4200 {
        let name = format!("nope{number}");
        let unknown = client.invoke("p", &name, b"");
        assert_eq!(unknown, Err(InvokeError::UnknownFunction(name)));
    }
    let large = vec![7; 1 << 20];
    for _ in 0..2 {
        assert_eq!(client.invoke("p", "echo", b"on").unwrap(), b"on");
        assert!(client.invoke("p", "echo", &large).unwrap() == large);
    }
    process.stop();
}

#[test]
fn state_is_seen_as_it_was() {
    over_all(WaitMode::Warm, |_, _, client| {
        let listed: Vec<String> = client.invoke_value("p", "objects", &()).unwrap();
        assert_eq!(listed, ["b/1 3", "b/2 3"]);
        assert_eq!(client.invoke_value("p", "shares", &()), Ok(42_u64));
    });
}

#[test]
fn additions_in_place_are_never_lost() {
    over_all(WaitMode::Warm, |name, _, client| {
        let sums = client.function("p", "sums").unwrap();
        let one = praas_runtime::codec::encode(&1_u64).unwrap();
        let calls: Vec<_> = (0..500)
            .map(|_| client.submit(sums, &one, CallOptions::default()).unwrap())
            .collect();
        for call in calls {
            client.wait(call).unwrap();
        }
        let refused = client.invoke_value::<_, ()>("p", "sums", &0_u64);
        assert!(matches!(refused, Err(InvokeError::Function(text)) if text == "nothing to add"));
        let sum = client.invoke("p", "praas.state.get", b"sum").unwrap();
        assert_eq!(sum, 500_u64.to_le_bytes(), "{name}");
    });
}

/// The limit has room for the old value or the new one, not for both.
#[test]
fn an_object_above_half_of_the_limit_is_written_anew() {
    let settings = ProcessSettings {
        wait: WaitMode::Warm,
        state_max_bytes: 150_000,
        ..Default::default()
    };
    let (process, mut client) = start(Listen::Shm { name: None }, settings);
    let mut renew =
        |bytes: u64| -> Option<String> { client.invoke_value("p", "renews", &bytes).unwrap() };
    for bytes in [100_000, 100_000, 149_000, 80_000] {
        assert_eq!(renew(bytes), None, "{bytes}");
    }
    // What cannot be is refused, and nothing is kept of the attempt.
    for bytes in [150_000, u64::MAX >> 2] {
        let refused = renew(bytes).unwrap();
        assert!(refused.contains("state_max_bytes"), "{refused}");
    }
    assert_eq!(renew(149_000), None);
    let large = client.invoke("p", "praas.state.get", b"large").unwrap();
    assert!(large == vec![5; 149_000]);
    process.stop();
}

#[test]
fn a_broadcast_tells_of_each_receiver() {
    over_all(WaitMode::Warm, |_, _, client| {
        let told: Vec<String> = client.invoke_value("p", "broadcasts", &()).unwrap();
        let unknown = "q: process 'q' is not to be had: it is not in the list of processes";
        assert_eq!(told, [unknown, "p has it"]);
    });
}

#[test]
fn what_waits_or_spins_holds_up_nobody() {
    over_all(WaitMode::Warm, |_, _, client| {
        let waits = client.function("p", "waits").unwrap();
        let spins = client.function("p", "spins").unwrap();
        let waiting = client.submit(waits, b"", CallOptions::default()).unwrap();
        object_wait(client, "waiting");
        let spinning = client.submit(spins, b"", CallOptions::default()).unwrap();
        object_wait(client, "spinning");
        assert_eq!(
            client.invoke("p", "echo", b"beside them").unwrap(),
            b"beside them"
        );
        for _ in 0..3000 {
            client.invoke("p", "noop", b"").unwrap();
        }
        client
            .message_put("p", "go", b"gone", CallOptions::default())
            .unwrap();
        assert_eq!(client.wait(waiting).unwrap().as_ref(), b"gone");
        client.cancel(spinning);
        assert_eq!(client.wait(spinning).err(), Some(InvokeError::Cancelled));
    });
}

#[test]
fn what_goes_on_after_a_wait_holds_up_nobody() {
    // Asleep at once: the function's thread leads while it waits, and whoever watched sleeps, too.
    over_all(WaitMode::Warm, |_, _, client| {
        let function = client.function("p", "waits_then_spins").unwrap();
        let call = client
            .submit(function, b"", CallOptions::default())
            .unwrap();
        object_wait(client, "waiting");
        client
            .message_put("p", "go", b"", CallOptions::default())
            .unwrap();
        object_wait(client, "spinning");
        client.invoke("p", "noop", b"").unwrap();
        client.cancel(call);
        assert_eq!(client.wait(call).err(), Some(InvokeError::Cancelled));
    });
}

/// A client that was forgotten asks again for what runs, or ran: nobody knows, so it is told that.
#[test]
fn what_a_forgotten_client_asks_again_for_does_not_run_again() {
    let settings = ProcessSettings {
        workers: 2,
        sessions_max: 1,
        quiesce_timeout_ms: 50,
        caller_gone_cancel_ms: 0,
        ..Default::default()
    };
    let listen = Listen::Shm { name: None };
    let (process, config) = start_from(listen, settings, None);
    let client = || Client::new(config.clone()).unwrap();
    let (mut first, mut other) = (client(), client());
    let spins = first.function("p", "spins").unwrap();
    // On an open channel what is submitted goes out at once.
    first.invoke("p", "noop", b"").unwrap();
    let call = first.submit(spins, b"", CallOptions::default()).unwrap();
    object_wait(&mut other, "spinning");
    // All are let in again; the first one does not come before two others have.
    process.credential_changed(config.credential.clone());
    let mut newcomers = [client(), client()];
    for newcomer in &mut newcomers {
        newcomer.invoke("p", "noop", b"").unwrap();
    }
    assert_eq!(first.wait(call).err(), Some(InvokeError::OutcomeUnknown));
    assert_eq!(process.stats().running, 1, "the first one runs on");
    assert_eq!(first.invoke("p", "echo", b"new").unwrap(), b"new");
    process.stop();
}

#[test]
fn files_are_swapped_out_and_come_back() {
    let storage = tempfile::tempdir().unwrap();
    let storage = praas_runtime::swap::DirStorage::new(storage.path()).unwrap();
    let listen = || Listen::Shm { name: None };
    let (process, mut client) = start(listen(), ProcessSettings::default());
    let written: String = client.invoke_value("p", "files", "kept").unwrap();
    assert_eq!(written, "kept");
    let config = praas_runtime::swap::SwapConfig::default();
    process.swap_out(&storage, &config).unwrap();
    drop(process);
    let pool = praas_transport::BufPool::new(1 << 26);
    let loaded = praas_runtime::swap::swap_in(&storage, &pool, "app", "p").unwrap();
    let image = loaded.unwrap().image;
    assert_eq!(image.files.len(), 1);
    let (process, config) = start_from(listen(), ProcessSettings::default(), Some(image));
    let mut client = Client::new(config).unwrap();
    let read: String = client.invoke_value("p", "files", "").unwrap();
    assert_eq!(read, "kept");
    process.stop();
}

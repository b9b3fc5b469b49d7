//! Every call that a function can make, in Rust: `tests/c/calls.c` is the same in C, and
//! `tests/tests/calls.rs` runs both.

use std::fmt::Write;
use std::time::Duration;

use praas_runtime::prelude::*;

#[praas_runtime::function(short)]
fn who(context: &Context) -> Vec<u8> {
    let until = match context.deadline_left() {
        None => "for ever",
        Some(_) => "until then",
    };
    context.log(LogLevel::Information, "it was asked who it is");
    let (application, process) = (context.application(), context.process());
    let (function, incarnation) = (context.function(), context.incarnation());
    format!("{application} {process} {function} {incarnation} {until}").into_bytes()
}

/// The invocation's id: whose it is, and its number.
#[praas_runtime::function]
fn id(context: &Context) -> Result<Vec<u8>, FunctionError> {
    let (client, sequence) = context.invocation_id()?;
    Ok(format!("{client:032x} {sequence}").into_bytes())
}

/// An object that shares another one's memory, one that is written through, and a file.
#[praas_runtime::function]
fn keeps(context: &Context) -> Result<Vec<u8>, FunctionError> {
    context.state_put("first", b"shared")?;
    let view = context.state_view("first")?.ok_or_else(missing)?;
    let version = context.state_put_view("second", &view)?;
    let second = context.state_view("second")?.ok_or_else(missing)?;
    assert_eq!((second.version(), &*second), (version, &b"shared"[..]));
    std::fs::write(context.state_dir()?.join("file"), "file")?;
    assert_eq!(context.state_persist("second")?, version);
    context.state_put("first", b"lost")?;
    let version = context.state_put_persist("second", b"kept")?;
    let timeout = Duration::from_secs(10);
    assert_eq!(context.state_persist_within("second", timeout)?, version);
    assert_eq!(context.state_persist("none")?, 0);
    let bad = context.state_persist("");
    assert!(matches!(bad, Err(CallError::BadArgument(_))), "{bad:?}");
    Ok(b"kept".to_vec())
}

#[praas_runtime::function]
fn state(context: &Context) -> Result<Vec<u8>, FunctionError> {
    context.state_put("b/1", b"one")?;
    context.state_append("b/2", b"tw")?;
    assert_eq!(context.state_append("b/2", b"o")?, 3);
    let version = context.state_put("a", b"old")?;
    let view = context.state_view("a")?.ok_or_else(missing)?;
    assert_eq!(view.version(), version);
    assert_eq!(
        context.state_compare_swap("a", version + 9, b"no")?,
        Err(version)
    );
    let now = context.state_compare_swap("a", version, b"new")?;
    assert!(now.is_ok_and(|now| now > version));
    assert_eq!(&*view, b"old");
    context.state_update("a", 5, |old, new| {
        assert_eq!(old, b"new");
        new.copy_from_slice(b"draft");
        Ok(())
    })?;
    assert_eq!(context.state_get("a")?.as_deref(), Some(&b"draft"[..]));
    assert!(context.state_delete("a")? && !context.state_delete("a")?);
    assert!(context.state_view("a")?.is_none());
    let bad = context.state_put("", b"no key");
    assert!(matches!(bad, Err(CallError::BadArgument(_))), "{bad:?}");
    let second = context.state_list("b/", Some("b/1"), 10)?;
    assert_eq!((second.len(), &*second[0].key), (1, "b/2"));
    let mut text = String::new();
    for entry in context.state_list("b/", None, 10)? {
        writeln!(text, "{} {}", entry.key, entry.bytes)?;
    }
    Ok(text.into_bytes())
}

#[praas_runtime::function]
fn mail(context: &Context) -> Result<(), FunctionError> {
    let own = context.process().to_owned();
    context.message_put(&own, "k", b"first")?;
    context.message_put_within(&own, "k", b"second", Duration::from_secs(1))?;
    assert!(context.message_try(Some("other"), "k")?.is_none());
    let peeked = context.message_peek(None, "k")?.ok_or_else(missing)?;
    assert_eq!(&*peeked.payload, b"first");
    let first = context.message_try(Some(&own), "k")?.ok_or_else(missing)?;
    assert_eq!(&*first.payload, b"first");
    let second = context.message_get(None, "k", None)?;
    assert_eq!((&*second.source, &*second.payload), (&*own, &b"second"[..]));
    let none = context.message_get(None, "k", Some(Duration::from_millis(1)));
    assert!(matches!(none, Err(CallError::DeadlineExceeded)), "{none:?}");
    Ok(())
}

/// Waits for a message under the key that the input is: who sent it, and its body.
#[praas_runtime::function]
fn take(context: &Context, input: &[u8]) -> Result<Vec<u8>, FunctionError> {
    let message = context.message_get(None, text(input)?, None)?;
    let mut out = format!("{}: ", message.source).into_bytes();
    out.extend_from_slice(&message.payload);
    Ok(out)
}

/// The same, and running it twice does no harm.
#[praas_runtime::function(idempotent)]
fn take_again(context: &Context, input: &[u8]) -> Result<Vec<u8>, FunctionError> {
    take(context, input)
}

/// Asks for what may have to be waited for, which a short function may not. Input: a process.
#[praas_runtime::function(short)]
fn hurried(context: &Context, input: &[u8]) -> Result<(), FunctionError> {
    let got = context.message_get(None, "none", None);
    assert!(matches!(got, Err(CallError::Exhausted(_))), "{got:?}");
    let asked = context.invoke(text(input)?, "who", b"");
    assert!(matches!(asked, Err(CallError::Exhausted(_))), "{asked:?}");
    Ok(())
}

/// As many bytes as the input says, if it may hold them.
#[praas_runtime::function(concurrency = 1, memory_bytes = 65536)]
fn limited<'a>(context: &'a Context, input: &[u8]) -> Result<Output<'a>, FunctionError> {
    let mut output = context.output(text(input)?.parse()?)?;
    output.fill(b'x');
    Ok(output)
}

/// Stores an object for which there is to be no room.
#[praas_runtime::function]
fn too_much(context: &Context, input: &[u8]) -> Result<(), FunctionError> {
    let stored = context.state_put("too much", &vec![0; text(input)?.parse()?]);
    assert!(
        matches!(stored, Err(CallError::LimitReached(_))),
        "{stored:?}"
    );
    stored?;
    Ok(())
}

/// Input "process key body": a message for another process.
#[praas_runtime::function]
fn put(context: &Context, input: &[u8]) -> Result<(), FunctionError> {
    let mut words = text(input)?.split(' ');
    let mut word = || words.next().ok_or_else(missing);
    let (process, key, body) = (word()?, word()?, word()?);
    Ok(context.message_put(process, key, body.as_bytes())?)
}

/// Input "process function": that function's output, for its own name as the input.
#[praas_runtime::function]
fn ask(context: &Context, input: &[u8]) -> Result<Vec<u8>, FunctionError> {
    let (process, function) = text(input)?.split_once(' ').ok_or_else(missing)?;
    let process = if process == "self" { "" } else { process };
    let input = function.as_bytes();
    let output = context.invoke_within(process, function, input, Duration::from_secs(10))?;
    Ok(output.to_vec())
}

/// Input "process key": a state object of that process, or "none".
#[praas_runtime::function]
fn peer(context: &Context, input: &[u8]) -> Result<Vec<u8>, FunctionError> {
    let (process, key) = text(input)?.split_once(' ').ok_or_else(missing)?;
    let object = context.peer_state(process, key)?;
    Ok(object.map_or_else(|| b"none".to_vec(), |object| object.to_vec()))
}

/// Input "process": its answers to many invocations at once.
#[praas_runtime::function]
fn batch(context: &Context, input: &[u8]) -> Result<Vec<u8>, FunctionError> {
    let outcomes = context.invoke_batch(text(input)?, "fails", &["one", "two", "three"])?;
    let mut text = String::new();
    for outcome in outcomes {
        match outcome {
            Err(CallError::Function(told)) => writeln!(text, "{told} 1")?,
            other => writeln!(text, "{other:?}")?,
        }
    }
    Ok(text.into_bytes())
}

/// Input "process function input": begins it, and does not wait for it.
#[praas_runtime::function]
fn one_way(context: &Context, input: &[u8]) -> Result<(), FunctionError> {
    let (process, rest) = text(input)?.split_once(' ').ok_or_else(missing)?;
    let (function, input) = rest.split_once(' ').ok_or_else(missing)?;
    Ok(context.invoke_one_way(process, function, input.as_bytes())?)
}

fn outcomes(told: Vec<Told>) -> Result<Vec<u8>, FunctionError> {
    let mut text = String::new();
    for Told { process, outcome } in told {
        // As the ABI numbers them.
        let code = match outcome {
            Ok(()) => 0,
            Err(CallError::MailboxFull(_)) => 12,
            Err(CallError::Unavailable(_)) => 104,
            Err(error) => return Err(error.into()),
        };
        writeln!(text, "{process} {code}")?;
    }
    Ok(text.into_bytes())
}

/// Tells the processes that the input names, one after the other: news of 100,000 bytes.
#[praas_runtime::function]
fn tell(context: &Context, input: &[u8]) -> Result<Vec<u8>, FunctionError> {
    let names: Vec<&str> = text(input)?.split(' ').collect();
    let news = vec![b'n'; 100_000];
    let within = Duration::from_secs(10);
    outcomes(context.message_broadcast_within(Some(&names), "news", &news, within)?)
}

/// Tells all other members what the input is.
#[praas_runtime::function]
fn tell_all(context: &Context, input: &[u8]) -> Result<Vec<u8>, FunctionError> {
    outcomes(context.message_broadcast(None, "news", input)?)
}

fn world_text(world: &WorldMembers) -> Vec<u8> {
    let mut text = world.generation.to_string();
    for WorldMember {
        name,
        incarnation,
        state,
    } in &world.members
    {
        let state = format!("{state:?}").to_lowercase();
        text += &format!(" {name}/{incarnation}:{state}");
    }
    text.into_bytes()
}

/// The world as it is: its generation, and members with incarnation and state.
#[praas_runtime::function]
fn world(context: &Context) -> Result<Vec<u8>, FunctionError> {
    Ok(world_text(&context.world()?))
}

/// Input "after timeout_us": the world, once it has changed.
#[praas_runtime::function]
fn world_wait(context: &Context, input: &[u8]) -> Result<Vec<u8>, FunctionError> {
    let (after, timeout) = text(input)?.split_once(' ').ok_or_else(missing)?;
    let timeout = timeout.parse::<i64>()?;
    let timeout = u64::try_from(timeout).ok().map(Duration::from_micros);
    context.state_put("waiting", b"")?;
    Ok(world_text(&context.world_wait(after.parse()?, timeout)?))
}

/// Runs until it is to end.
#[praas_runtime::function(long)]
fn spins(context: &Context) -> Result<(), FunctionError> {
    context.state_put("spinning", b"")?;
    while !context.cancelled() {
        std::hint::spin_loop();
    }
    Err(CallError::Cancelled.into())
}

#[praas_runtime::function]
fn fails(input: &[u8]) -> Result<(), FunctionError> {
    Err(FunctionError::new(text(input)?))
}

#[praas_runtime::function(name = "large.output", idempotent)]
fn large<'a>(context: &'a Context) -> Result<Output<'a>, FunctionError> {
    let mut output = context.output(1 << 20)?;
    output.fill(b'x');
    Ok(output)
}

fn text(input: &[u8]) -> Result<&str, FunctionError> {
    Ok(std::str::from_utf8(input)?)
}

fn missing() -> FunctionError {
    FunctionError::new("something is missing")
}

praas_runtime::module!(
    "calls",
    [
        who, id, keeps, state, mail, take, take_again, hurried, limited, too_much, put, ask, peer,
        batch, one_way, tell, tell_all, world, world_wait, spins, fails, large
    ]
);

//! Functions that end-to-end tests call.

use praas_runtime::prelude::*;
use praas_runtime::process::{STATE_PUT, StatePutInput};

/// What goes in comes out.
#[praas_runtime::function]
fn echo(input: &[u8]) -> Vec<u8> {
    input.to_vec()
}

/// Counts in a state object.
#[praas_runtime::function]
fn count(context: &Context, step: u64) -> Result<u64, FunctionError> {
    let count = context.state_load("count")?.unwrap_or(0_u64) + step;
    context.state_store("count", &count)?;
    Ok(count)
}

/// Writes the state object "holding", then waits for a message under "release" and returns it: so a
/// test says when the invocation ends.
#[praas_runtime::function]
fn hold(context: &Context) -> Result<Vec<u8>, FunctionError> {
    context.state_put("holding", b"yes")?;
    let message = context.message_get(None, "release", None)?;
    Ok(message.payload.to_vec())
}

/// Writes a file of the process, or (nothing to write) reads it.
#[praas_runtime::function]
fn note(context: &Context, text: String) -> Result<String, FunctionError> {
    let path = context.state_dir()?.join("note.txt");
    if !text.is_empty() {
        std::fs::write(&path, &text)?;
    }
    Ok(std::fs::read_to_string(path)?)
}

/// The operating-system process that runs it.
#[praas_runtime::function]
fn process_id() -> u64 {
    std::process::id().into()
}

/// Returns an error.
#[praas_runtime::function]
fn fail(input: &[u8]) -> Result<(), FunctionError> {
    Err(FunctionError::new(String::from_utf8_lossy(input)))
}

/// Ends the operating-system process as a wild pointer does.
#[praas_runtime::function]
fn crash() {
    let own = rustix::process::getpid();
    // The first is taken by Rust's look for a full stack, which lets the next one through; another
    // thread may get it, and a little later.
    while rustix::process::kill_process(own, rustix::process::Signal::SEGV).is_ok() {
        std::thread::park_timeout(std::time::Duration::from_millis(1));
    }
}

/// Makes a state object of so many bytes that no compression makes smaller.
#[praas_runtime::function]
fn fill(context: &Context, bytes: u64) -> Result<(), FunctionError> {
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut object = Vec::with_capacity(bytes as usize);
    while (object.len() as u64) < bytes {
        // Xorshift, by Marsaglia.
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        object.extend_from_slice(&word.to_le_bytes());
    }
    context.state_put("fill", &object)?;
    Ok(())
}

/// Puts that many messages with numbers, which go on from one call to the next, to a process under
/// "sent"; the last number.
#[praas_runtime::function]
fn send(context: &Context, (to, messages): (String, u64)) -> Result<u64, FunctionError> {
    let before = context.state_load("sent")?.unwrap_or(0_u64);
    for number in before + 1..=before + messages {
        context.message_put(&to, "sent", &number.to_le_bytes())?;
    }
    context.state_store("sent", &(before + messages))?;
    Ok(before + messages)
}

/// Bytes of the object that `visit` writes: too many to come with the answer to a reader.
const VISITED_BYTES: usize = 100_000;

/// Until there is a message under "enough": has another process count, puts it a message with a
/// number, and has it store an object, which it then reads there; the counts. In "visits" is how
/// often.
#[praas_runtime::function]
fn visit(context: &Context, process: String) -> Result<Vec<u64>, FunctionError> {
    let mut counts = Vec::new();
    let mut version = 0;
    while context.message_try(None, "enough")?.is_none() {
        counts.push(context.invoke_value(&process, "count", &1_u64)?);
        let sum: Option<u64> = context.peer_state_load(&process, "count")?;
        if sum.as_ref() != counts.last() {
            return Err(FunctionError::new(format!("{sum:?} after {counts:?}")));
        }
        let number = counts.len() as u64;
        context.message_put(&process, "visit", &number.to_le_bytes())?;
        let input = StatePutInput {
            key: "visited".into(),
            value: vec![number as u8; VISITED_BYTES],
        };
        let stored: u64 = context.invoke_value(&process, STATE_PUT, &input)?;
        let view = context.peer_state(&process, "visited")?;
        let view = view.ok_or_else(|| FunctionError::new("it has stored nothing"))?;
        if *view != *input.value || view.version() != stored || stored <= version {
            let text = format!(
                "at visit {number}: {} bytes of {:?}, version {} ({stored}, {version} before)",
                view.len(),
                view.first(),
                view.version()
            );
            return Err(FunctionError::new(text));
        }
        version = stored;
        context.state_store("visits", &number)?;
    }
    Ok(counts)
}

/// Panics.
#[praas_runtime::function]
fn panics() {
    panic!("the lab panics, as it was asked to");
}

praas_runtime::module!(
    "lab",
    [
        echo, count, hold, note, process_id, fail, crash, fill, send, visit, panics
    ]
);

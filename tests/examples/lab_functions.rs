//! The functions of the lab's processes: a module as a user would write it, built as a shared
//! library beside the tests.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use praas_runtime::prelude::*;

/// Nothing.
#[praas_runtime::function(short)]
fn noop() {}

/// Its input.
#[praas_runtime::function]
fn echo<'a>(context: &'a Context, input: &[u8]) -> Result<Output<'a>, FunctionError> {
    let mut output = context.output(input.len())?;
    output.copy_from_slice(input);
    Ok(output)
}

/// The length of its input.
#[praas_runtime::function]
fn length(input: &[u8]) -> Vec<u8> {
    (input.len() as u64).to_le_bytes().to_vec()
}

/// Panics.
#[praas_runtime::function]
fn panics(input: &[u8]) -> Vec<u8> {
    panic!("{} bytes are too many", input.len())
}

/// Makes the state object `waiting`, and ends once a message under `go` is there, with its body.
#[praas_runtime::function]
fn waits(context: &Context) -> Result<Vec<u8>, FunctionError> {
    context.state_put("waiting", b"")?;
    Ok(context.message_get(None, "go", None)?.payload.to_vec())
}

/// Makes the state object `sleeping` and sleeps on its worker, for so many milliseconds.
#[praas_runtime::function]
#[allow(clippy::disallowed_methods)] // That it sleeps is what it is for.
fn sleeps(context: &Context, ms: u64) -> Result<(), FunctionError> {
    context.state_put("sleeping", b"")?;
    std::thread::sleep(Duration::from_millis(ms));
    Ok(())
}

/// Fills so many bytes of state, in objects of up to 64 MiB.
#[praas_runtime::function]
fn fills(context: &Context, bytes: u64) -> Result<(), FunctionError> {
    let object = vec![0x5a; 64 << 20];
    let mut left = bytes as usize;
    let mut number = 0;
    while left > 0 {
        let len = left.min(object.len());
        context.state_put(&format!("fill/{number}"), &object[..len])?;
        left -= len;
        number += 1;
    }
    Ok(())
}

/// Puts that many messages with numbers to its own process, under `k`.
#[praas_runtime::function]
fn puts_own(context: &Context, messages: u64) -> Result<(), FunctionError> {
    for number in 0..messages {
        context.message_put(context.process(), "k", &number.to_le_bytes())?;
    }
    Ok(())
}

/// Gets messages under `k`, never waiting longer than 50 microseconds, until there is none and one
/// is there under `enough`: from whom, and their numbers.
#[praas_runtime::function]
fn gets_soon(context: &Context) -> Result<Vec<(String, u64)>, FunctionError> {
    let soon = Some(std::time::Duration::from_micros(50));
    let mut got = Vec::new();
    loop {
        match context.message_get(None, "k", soon) {
            Ok(message) => {
                let number = (&*message.payload).try_into();
                let number = number.map_err(|_| FunctionError::new("no number"))?;
                got.push((message.source.to_string(), u64::from_le_bytes(number)));
            }
            Err(CallError::DeadlineExceeded) => {
                if context.message_try(None, "enough")?.is_some() {
                    return Ok(got);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Adds to the state object `count`, whatever others do; the sum.
#[praas_runtime::function]
fn count(context: &Context, step: u64) -> Result<u64, FunctionError> {
    Ok(context.state_update_value("count", |count: Option<u64>| count.unwrap_or(0) + step)?)
}

/// Counts its calls in the state object `count`, whatever others do.
#[praas_runtime::function]
fn counts(context: &Context) -> Result<u64, FunctionError> {
    loop {
        let Some(view) = context.state_view("count")? else {
            // Version zero is that of what is not there.
            if context
                .state_compare_swap("count", 0, &1u64.to_le_bytes())?
                .is_ok()
            {
                return Ok(1);
            }
            continue;
        };
        let bytes: [u8; 8] = (*view)
            .try_into()
            .map_err(|_| FunctionError::new("no count"))?;
        let next = u64::from_le_bytes(bytes) + 1;
        let swapped = context.state_compare_swap("count", view.version(), &next.to_le_bytes())?;
        if swapped.is_ok() {
            return Ok(next);
        }
    }
}

/// Counts like `counts` and has that written through; makes the state object `durable`, and ends
/// once a message under `go` is there.
#[praas_runtime::function]
fn counts_through(context: &Context) -> Result<Vec<u8>, FunctionError> {
    let count = context.invoke("", "counts", b"")?.to_vec();
    context.state_persist("count")?;
    context.state_append("durable", b"!")?;
    context.message_get(None, "go", None)?;
    Ok(count)
}

/// Invokes `back` of the process that its input names, which invokes `length` here.
#[praas_runtime::function]
fn there(context: &Context, other: String) -> Result<Vec<u8>, FunctionError> {
    let own = context.process().to_string();
    Ok(context.invoke(&other, "back", own.as_bytes())?.to_vec())
}

/// Invokes `length` of the process that its input names.
#[praas_runtime::function]
fn back(context: &Context, input: &[u8]) -> Result<Vec<u8>, FunctionError> {
    let caller = std::str::from_utf8(input).map_err(|_| FunctionError::new("no name"))?;
    Ok(context.invoke(caller, "length", b"12345")?.to_vec())
}

/// Invokes a function of a process one-way, so many times, without an input.
#[praas_runtime::function]
fn posts(
    context: &Context,
    (process, function, times): (String, String, u32),
) -> Result<(), FunctionError> {
    for _ in 0..times {
        context.invoke_one_way(&process, &function, b"")?;
    }
    Ok(())
}

/// Fails unless it is the only one of its kind that runs, for so many milliseconds.
#[praas_runtime::function(concurrency = 1)]
fn alone(context: &Context, ms: u64) -> Result<(), FunctionError> {
    if context.state_get("alone")?.is_some() {
        return Err(FunctionError::new("not alone"));
    }
    context.state_put("alone", b"")?;
    let until = Instant::now() + Duration::from_millis(ms);
    while Instant::now() < until && !context.cancelled() {
        std::thread::yield_now();
    }
    context.state_delete("alone")?;
    Ok(())
}

/// Appends its input to the state object `order`, one after the other.
#[praas_runtime::function(concurrency = 1)]
fn orders(context: &Context, input: &[u8]) -> Result<(), FunctionError> {
    context.state_append("order", input)?;
    Ok(())
}

/// Invokes itself locally, so many times, though one may run at once.
#[praas_runtime::function(concurrency = 1)]
fn nests(context: &Context, depth: u32) -> Result<u32, FunctionError> {
    match depth {
        0 => Ok(0),
        depth => Ok(context.invoke_value::<u32, u32>("", "nests", &(depth - 1))? + 1),
    }
}

/// Goes on once as many as its input says run at once.
#[praas_runtime::function]
fn meets(context: &Context, wanted: u64) -> Result<(), FunctionError> {
    context.state_append("met", b".")?;
    while context.state_get("met")?.map_or(0, |met| met.len() as u64) < wanted {
        if context.cancelled() {
            return Err(CallError::Cancelled.into());
        }
        std::thread::yield_now();
    }
    Ok(())
}

fn meets_and_calls(context: &Context, own: &str, other: &str) -> Result<(), FunctionError> {
    context.state_put(own, b"")?;
    while context.state_get(other)?.is_none() {
        if context.cancelled() {
            return Err(CallError::Cancelled.into());
        }
        std::thread::yield_now();
    }
    context.invoke("", other, b"")?;
    Ok(())
}

/// Invokes `right` locally once it runs, too.
#[praas_runtime::function(concurrency = 1)]
fn left(context: &Context) -> Result<(), FunctionError> {
    meets_and_calls(context, "left", "right")
}

/// Invokes `left` locally once it runs, too.
#[praas_runtime::function(concurrency = 1)]
fn right(context: &Context) -> Result<(), FunctionError> {
    meets_and_calls(context, "right", "left")
}

/// Runs until a message under `release` is there, whatever its caller or its limit says.
#[praas_runtime::function(time_ms = 200)]
fn hangs(context: &Context) -> Result<(), FunctionError> {
    context.state_put("hanging", b"")?;
    while context.message_peek(None, "release")?.is_none() {
        std::thread::yield_now();
    }
    Ok(())
}

/// Keeps so many bytes as the state object `stored`.
#[praas_runtime::function]
fn stores(context: &Context, bytes: u64) -> Result<(), FunctionError> {
    context.state_put("stored", &vec![1; bytes as usize])?;
    Ok(())
}

/// Keeps so many bytes as the state object `drafted`, written where they stay.
#[praas_runtime::function]
fn drafts(context: &Context, bytes: u64) -> Result<(), FunctionError> {
    context.state_update("drafted", bytes as usize, |_, new| {
        new.fill(2);
        Ok(())
    })?;
    Ok(())
}

/// Makes memory for so many bytes of the state object `refused`, and does not use it.
#[praas_runtime::function]
fn drafts_only(context: &Context, bytes: u64) -> Result<(), FunctionError> {
    let refused = |_: &[u8], _: &mut [u8]| Err(CallError::Cancelled);
    match context.state_update("refused", bytes as usize, refused) {
        Err(CallError::Cancelled) => Ok(()),
        other => Err(other.map(drop).unwrap_err().into()),
    }
}

/// Looks at the state object `stored` so many times, and keeps the views if it is told to.
#[praas_runtime::function]
fn looks(context: &Context, (times, keeps): (u32, bool)) -> Result<(), FunctionError> {
    let mut kept = Vec::new();
    for _ in 0..times {
        let view = context.state_view("stored")?;
        kept.extend(view.filter(|_| keeps));
    }
    Ok(())
}

/// Takes a message under `k`; its length.
#[praas_runtime::function]
fn takes(context: &Context) -> Result<Option<u64>, FunctionError> {
    let message = context.message_try(None, "k")?;
    Ok(message.map(|message| message.payload.len() as u64))
}

/// Makes the state object `spinning`, and computes until it is cancelled; then makes `cancelled`.
#[praas_runtime::function]
fn spins(context: &Context) -> Result<(), FunctionError> {
    context.state_put("spinning", b"")?;
    while !context.cancelled() {
        std::thread::yield_now();
    }
    context.state_put("cancelled", b"")?;
    Err(CallError::Cancelled.into())
}

/// Invokes the first function of a path (process and name), with the rest of it as input.
#[praas_runtime::function]
fn relays(context: &Context, mut path: Vec<(String, String)>) -> Result<(), FunctionError> {
    if path.is_empty() {
        return Err(FunctionError::new("the path has come to its end"));
    }
    let (process, function) = path.remove(0);
    let rest = praas_runtime::codec::encode(&path)?;
    context.invoke(&process, &function, &rest)?;
    Ok(())
}

/// Invokes `counts` of a process with so many inputs at once; the sum of what they give.
#[praas_runtime::function]
fn gathers(context: &Context, (process, times): (String, u32)) -> Result<u64, FunctionError> {
    let inputs = vec![[]; times as usize];
    let mut sum = 0;
    for outcome in context.invoke_batch(&process, "counts", &inputs)? {
        sum += praas_runtime::codec::decode::<u64>(&outcome?)?;
    }
    Ok(sum)
}

/// Invokes `spins` of `q` with three inputs at once.
#[praas_runtime::function]
fn waits_for_all(context: &Context) -> Result<(), FunctionError> {
    context.invoke_batch("q", "spins", &[b""; 3])?;
    Ok(())
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

fn overflows(depth: u64) -> u64 {
    let pad = std::hint::black_box([depth; 64]);
    match depth {
        u64::MAX => 0,
        depth => overflows(depth + 1) + pad[7],
    }
}

/// Comes to a bad end, in the way that its input names.
#[praas_runtime::function]
#[allow(clippy::disallowed_methods)] // That it ends its process is what it is for.
fn crashes(way: String) -> Result<(), FunctionError> {
    static LOCK: Mutex<()> = Mutex::new(());
    let own = rustix::process::getpid();
    let signal = |signal| rustix::process::kill_process(own, signal);
    match way.as_str() {
        "panic while a lock is held" => {
            let _held = LOCK.lock().map_err(|_| FunctionError::new("poisoned"))?;
            panic!("with the lock");
        }
        "panic in a thread" => {
            let thread = std::thread::spawn(|| panic!("in a thread"));
            let ended = thread.join();
            assert!(ended.is_ok(), "the thread has panicked");
        }
        "panic that panics when it is dropped" => std::panic::panic_any(Bomb),
        "stack overflow" => drop(std::hint::black_box(overflows(0))),
        "stack overflow in a thread" => {
            let thread = std::thread::spawn(|| std::hint::black_box(overflows(0)));
            drop(thread.join());
        }
        // The handler for stack overflows takes the first, and leaves the next to the kernel.
        "segmentation fault" => loop {
            signal(rustix::process::Signal::SEGV)?;
            std::thread::yield_now();
        },
        "kill" => signal(rustix::process::Signal::KILL)?,
        "abort" => std::process::abort(),
        "exit" => std::process::exit(0),
        "exit in a thread" => drop(std::thread::spawn(|| std::process::exit(0)).join()),
        other => return Err(FunctionError::new(other)),
    }
    // The signal comes, at the latest now.
    loop {
        std::thread::park();
    }
}

praas_runtime::module!(
    "lab",
    [
        noop,
        echo,
        length,
        panics,
        waits,
        sleeps,
        fills,
        puts_own,
        gets_soon,
        count,
        counts,
        counts_through,
        there,
        back,
        posts,
        alone,
        orders,
        nests,
        meets,
        left,
        right,
        hangs,
        stores,
        drafts,
        drafts_only,
        looks,
        takes,
        spins,
        relays,
        gathers,
        waits_for_all,
        crashes
    ]
);

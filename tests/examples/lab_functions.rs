//! The functions of the lab's processes: a module as a user would write it, built as a shared
//! library beside the tests.

use std::time::Duration;

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

praas_runtime::module!(
    "lab",
    [
        noop, echo, length, panics, waits, sleeps, fills, counts, there, back, posts
    ]
);

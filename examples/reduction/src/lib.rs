//! A reduction: each invocation adds a vector of integers to the one that the process keeps.
//!
//! ```text
//!   client:  add(1 2 3)  add(1 2 3)  add(1 2 3)          sum() = 3 6 9
//!   process: state object "sum":  1 2 3    2 4 6    3 6 9
//! ```
//!
//! | function | input | output |
//! |---|---|---|
//! | `add` | the vector: 64-bit signed integers, little-endian, one after the other | nothing |
//! | `sum` | nothing | the sum of all vectors, in the same form; empty if there are none |
//! | `clear` | nothing | nothing; the sum is forgotten |
//!
//! All vectors of a sum are equally long. Integers wrap around. `examples/reduction-c` is the same
//! in C, so a client can call either.

use praas_runtime::prelude::*;

/// The state object that holds the sum.
pub const SUM: &str = "sum";

/// Bytes of an integer.
const INTEGER: usize = size_of::<i64>();

/// Adds a vector to the sum. The new sum is written once, in the memory where it stays; two that
/// add at the same time both count.
#[praas_runtime::function]
pub fn add(context: &Context, vector: &[u8]) -> Result<(), FunctionError> {
    if vector.is_empty() || !vector.len().is_multiple_of(INTEGER) {
        let text = format!("a vector has 8 bytes an integer, not {}", vector.len());
        return Err(FunctionError::new(text));
    }
    context.state_update(SUM, vector.len(), |old, new| match old.len() {
        0 => {
            new.copy_from_slice(vector);
            Ok(())
        }
        len if len == vector.len() => {
            vector_add(new, old, vector);
            Ok(())
        }
        len => {
            let (sum, vector) = (len / INTEGER, vector.len() / INTEGER);
            let text = format!("the sum has {sum} integers, the vector {vector}");
            Err(CallError::BadArgument(text))
        }
    })?;
    Ok(())
}

/// The sum.
#[praas_runtime::function(idempotent)]
pub fn sum<'a>(context: &'a Context) -> Result<Output<'a>, FunctionError> {
    let sum = context.state_view(SUM)?;
    let sum = sum.as_deref().unwrap_or(&[]);
    let mut output = context.output(sum.len())?;
    output.copy_from_slice(sum);
    Ok(output)
}

/// Forgets the sum.
#[praas_runtime::function(idempotent)]
pub fn clear(context: &Context) -> Result<(), FunctionError> {
    context.state_delete(SUM)?;
    Ok(())
}

praas_runtime::module!("reduction", [add, sum, clear]);

fn vector_add(new: &mut [u8], old: &[u8], vector: &[u8]) {
    let (new, _) = new.as_chunks_mut::<INTEGER>();
    let old = old.as_chunks::<INTEGER>().0.iter();
    let terms = old.zip(vector.as_chunks::<INTEGER>().0);
    for (new, (a, b)) in new.iter_mut().zip(terms) {
        *new = i64::from_le_bytes(*a)
            .wrapping_add(i64::from_le_bytes(*b))
            .to_le_bytes();
    }
}

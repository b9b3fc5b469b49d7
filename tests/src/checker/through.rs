//! What is written through: operations on state objects which say that what they are is durable.
//!
//! ```text
//!   called ... runs [ write ... wanted ... told ] ...                    one operation: Through
//!                   [ write ... wanted ... not told, or killed ] ... over    ThroughWanted, ThroughOver
//! ```
//!
//! Whoever is not told knows nothing: whatever the object is until the write that it waited for is
//! over may have become durable, or not.

use super::history::{Event, History, Reply, Time};
use super::linear::Operation;
use super::models::ObjectOp;
use super::operation;

/// When nothing was under way any more at a process that was to be written through before: in one
/// of its lives, or, where another one begins, in all.
pub(super) struct ThroughEnds(Vec<(Time, Option<u64>)>);

impl ThroughEnds {
    pub fn new(history: &History, process: &str) -> Self {
        let ends = history.timed().filter_map(|(at, event)| match event {
            Event::WrittenThrough {
                process: of,
                incarnation,
            } => (of == process).then_some((at, Some(*incarnation))),
            Event::Started { process: of, .. } | Event::Moved { process: of, .. } => {
                (of == process).then_some((at, None))
            }
            _ => None,
        });
        Self(ends.collect())
    }

    /// Of one who wanted an object to be written through, in a life, and got this in reply.
    pub fn operations(
        &self,
        (begin, end): (Time, Option<Time>),
        incarnation: Option<u64>,
        reply: Option<&Reply>,
    ) -> Vec<Operation<ObjectOp>> {
        let value = match reply {
            Some(Reply::Durable(value)) => Some(*value),
            Some(Reply::DurableLater) => None,
            _ => {
                let first = end.unwrap_or(begin);
                let from = self.0.partition_point(|(at, _)| *at <= first);
                let mut later = self.0[from..].iter();
                let over = later.find(|(_, of)| of.is_none() || *of == incarnation);
                let over = over.map(|(at, _)| operation(*at, Some(*at), ObjectOp::ThroughOver));
                let wanted = operation(begin, Some(begin), ObjectOp::ThroughWanted);
                return [wanted].into_iter().chain(over).collect();
            }
        };
        vec![operation(begin, end, ObjectOp::Through(value))]
    }
}

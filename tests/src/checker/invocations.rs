//! Calls, by counting: each runs at most once, its reply is its own, and it ends.

use std::collections::BTreeMap;

use super::history::{Action, Call, Event, History, Outcome, Reply, Time};
use super::{Promise, Violation};

/// What is known of a call.
#[derive(Debug)]
pub(super) struct Told<'a> {
    pub process: &'a str,
    pub action: &'a Action,
    pub idempotent: bool,
    pub called: Time,
    /// When and how it ended for its caller.
    pub outcome: Option<(Time, &'a Outcome)>,
    /// Its runs: when and where each began, and when it was done with what.
    pub began: Vec<Run<'a>>,
}

#[derive(Debug)]
pub(super) struct Run<'a> {
    pub at: Time,
    pub process: &'a str,
    pub incarnation: u64,
    pub done: Option<(Time, &'a Reply)>,
}

impl Told<'_> {
    /// When it may have happened, and with what reply: once for each run if functions tell of
    /// themselves, else as its caller saw it.
    pub fn runs(&self, functions_tell: bool) -> Vec<(Time, Option<Time>, Option<&Reply>)> {
        if functions_tell && !matches!(self.action, Action::Look { .. }) {
            let runs = self.began.iter();
            return runs
                .map(|run| match run.done {
                    Some((end, reply)) => (run.at, Some(end), Some(reply)),
                    None => (run.at, None, None),
                })
                .collect();
        }
        match self.outcome {
            Some((end, Outcome::Ok(reply))) => vec![(self.called, Some(end), Some(reply))],
            Some((_, Outcome::NotRun(_))) => Vec::new(),
            _ => vec![(self.called, None, None)],
        }
    }
}

impl Told<'_> {
    /// In which life the run is that began then.
    pub fn incarnation(&self, at: Time) -> Option<u64> {
        let run = self.began.iter().find(|run| run.at == at)?;
        Some(run.incarnation)
    }
}

/// All calls, with what was said of each.
pub(super) fn calls(history: &History) -> BTreeMap<Call, Told<'_>> {
    let mut calls: BTreeMap<Call, Told<'_>> = BTreeMap::new();
    for (at, event) in history.timed() {
        match event {
            Event::Called {
                call,
                process,
                action,
                idempotent,
            } => {
                calls.entry(*call).or_insert(Told {
                    process,
                    action,
                    idempotent: *idempotent,
                    called: at,
                    outcome: None,
                    began: Vec::new(),
                });
            }
            Event::Returned { call, outcome } => {
                if let Some(told) = calls.get_mut(call) {
                    told.outcome.get_or_insert((at, outcome));
                }
            }
            Event::Began {
                call,
                process,
                incarnation,
            } => {
                if let Some(told) = calls.get_mut(call) {
                    told.began.push(Run {
                        at,
                        process,
                        incarnation: *incarnation,
                        done: None,
                    });
                }
            }
            Event::Ran {
                call,
                incarnation,
                reply,
                ..
            } => {
                let run = calls.get_mut(call).and_then(|told| {
                    let mut runs = told.began.iter_mut().rev();
                    runs.find(|run| run.incarnation == *incarnation && run.done.is_none())
                });
                if let Some(run) = run {
                    run.done = Some((at, reply));
                }
            }
            _ => {}
        }
    }
    calls
}

/// What is wrong with calls.
pub(super) fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut wrong = |promise, text| found.push(Violation { promise, text });
    let calls = calls(history);
    let mut returned: BTreeMap<Call, u32> = BTreeMap::new();
    for event in &history.events {
        match event {
            Event::Returned { call, .. } => *returned.entry(*call).or_default() += 1,
            Event::Began { call, process, .. } if !calls.contains_key(call) => wrong(
                Promise::OwnReply,
                format!("{process:?} runs call {call}, which nobody has made"),
            ),
            _ => {}
        }
    }
    for (call, told) in &calls {
        let name = format!("call {call} of {:?}: {:?}", told.process, told.action);
        match returned.get(call) {
            Some(1) => {}
            None => wrong(Promise::Ends, format!("{name} never ends")),
            Some(times) => wrong(Promise::OwnReply, format!("{name} ends {times} times")),
        }
        let lives: Vec<_> = told.began.iter().map(|run| run.incarnation).collect();
        if lives.len() > 1 && !told.idempotent {
            let text = format!(
                "{name} runs {} times, in incarnations {lives:?}",
                lives.len()
            );
            wrong(Promise::AtMostOnce, text);
        }
        if let Some(run) = told.began.iter().find(|run| run.process != told.process) {
            let text = format!("{name} runs in {:?}", run.process);
            wrong(Promise::OwnReply, text);
        }
        match told.outcome {
            Some((_, Outcome::Wrong(text))) => {
                wrong(Promise::OwnReply, format!("{name} gives {text}"));
            }
            Some((_, Outcome::NotRun(text))) if !told.began.is_empty() => {
                let text = format!("{name} runs, though it was said that it does not: {text}");
                wrong(Promise::AtMostOnce, text);
            }
            Some((at, Outcome::Ok(reply)))
                if history.functions_tell
                    && !matches!(told.action, Action::Put { .. } | Action::Look { .. }) =>
            {
                let gave = |run: &Run<'_>| run.done.is_some_and(|(t, r)| t < at && r == reply);
                if !told.began.iter().any(gave) {
                    let text = format!("{name} gives {reply:?}, which no run of it gave");
                    wrong(Promise::OwnReply, text);
                }
            }
            _ => {}
        }
    }
    found
}

//! Lives of processes: one at a time, each from the newest image that is whole.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Call, End, Event, History, Image, Time};
use super::{Promise, Violation};

/// One life of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// Its incarnation.
    pub incarnation: u64,
    /// When it began.
    pub started: Time,
    /// When it was over, and how.
    pub ended: Option<(Time, End)>,
}

/// What happens to everything that a process is, at once: between two moments each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Noted {
    /// An image is made of it.
    Image(Image, Time, Time),
    /// After a crash it is what an image was, or nothing.
    Back(Option<Image>, Time, Time),
}

/// The lives of a process, in order, and its images and crashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lives {
    /// The lives.
    pub lives: Vec<Life>,
    /// Images that a crash went back to, and the crashes.
    pub noted: Vec<Noted>,
}

/// The lives of one process as far as they were followed.
#[derive(Debug, Default)]
struct Following {
    lives: Vec<Life>,
    noted: Vec<Noted>,
    imaging: BTreeMap<u64, Time>,
    /// Lives that stand still, and since when.
    frozen: BTreeMap<u64, Time>,
    /// Images that are in storage.
    there: BTreeSet<Image>,
    /// The highest that its writer has said to be whole.
    committed: Option<Image>,
    /// When the process was stopped last, and its newest life then.
    forgotten: Option<(Time, u64)>,
}

/// The lives of each process with its images and crashes, and what is wrong with them.
pub fn lives(history: &History) -> (BTreeMap<String, Lives>, Vec<Violation>) {
    let mut all: BTreeMap<&str, Following> = BTreeMap::new();
    let mut found = Vec::new();
    for (at, event) in history.timed() {
        match event {
            Event::Imaging {
                process,
                incarnation,
            } => {
                let following = all.entry(process).or_default();
                following.imaging.insert(*incarnation, at);
            }
            Event::Durable { process, image } => {
                let following = all.entry(process).or_default();
                found.extend(following.durable(at, process, *image));
            }
            Event::Committed { process, image } => {
                let following = all.entry(process).or_default();
                if !following.is_forgotten(*image) {
                    following.committed = following.committed.max(Some(*image));
                }
            }
            Event::Deleted { process, image } => {
                let following = all.entry(process).or_default();
                following.there.remove(image);
            }
            Event::Started {
                process,
                incarnation,
                from,
            } => {
                let following = all.entry(process).or_default();
                found.extend(following.started(at, process, *incarnation, *from));
            }
            Event::Frozen {
                process,
                incarnation,
            } => {
                let following = all.entry(process).or_default();
                following.frozen.insert(*incarnation, at);
            }
            Event::Thawed {
                process,
                incarnation,
            } => {
                let following = all.entry(process).or_default();
                found.extend(following.thawed(process, *incarnation));
            }
            Event::Moved {
                process,
                incarnation,
                from,
            } => {
                let following = all.entry(process).or_default();
                found.extend(following.moved(at, process, *incarnation, *from));
            }
            Event::Removed { process, left } if !left.is_empty() => found.push(Violation {
                promise: Promise::Deleted,
                text: format!("{process:?} was deleted, and {left:?} is left"),
            }),
            Event::Forgotten { process } => all.entry(process).or_default().forget(at),
            Event::Ended {
                process,
                incarnation,
                how,
            } => {
                let following = all.entry(process).or_default();
                let mut lives = following.lives.iter_mut();
                if let Some(life) = lives.find(|life| life.incarnation == *incarnation) {
                    life.ended.get_or_insert((at, how.clone()));
                }
            }
            Event::Began {
                process,
                incarnation,
                call,
            } => {
                let following = all.get(process.as_str());
                found.extend(following.and_then(|f| f.runs(process, *incarnation, *call)));
            }
            _ => {}
        }
    }
    let all = all.into_iter().map(|(process, mut following)| {
        following.unused_forget();
        let Following { lives, noted, .. } = following;
        (process.to_owned(), Lives { lives, noted })
    });
    (all.collect(), found)
}

impl Following {
    fn forget(&mut self, at: Time) {
        let newest = self.lives.last().map_or(0, |life| life.incarnation);
        self.forgotten = Some((at, newest));
        self.there.clear();
        self.committed = None;
    }

    /// Whether it is of a life of which nothing is to come back, however late it is written.
    fn is_forgotten(&self, image: Image) -> bool {
        let last = self.forgotten.map(|(_, last)| last);
        last.is_some_and(|last| image.incarnation <= last)
    }

    /// A life runs something: it is the newest, and does not stand still.
    fn runs(&self, process: &str, incarnation: u64, call: Call) -> Option<Violation> {
        let newest = self.lives.last()?;
        let text = if newest.incarnation != incarnation || newest.ended.is_some() {
            format!(
                "incarnation {incarnation} of {process:?} runs call {call}, and is not the one \
                 that lives: {newest:?}"
            )
        } else if self.frozen.contains_key(&incarnation) {
            format!("incarnation {incarnation} of {process:?} runs call {call} while it is frozen")
        } else {
            return None;
        };
        let promise = Promise::OneLife;
        Some(Violation { promise, text })
    }

    fn thawed(&mut self, process: &str, incarnation: u64) -> Option<Violation> {
        self.frozen.remove(&incarnation);
        let newest = self.lives.last();
        let meant = newest.is_some_and(|life| life.incarnation == incarnation);
        (!meant).then(|| Violation {
            promise: Promise::OneLife,
            text: format!("incarnation {incarnation} of {process:?} serves on beside {newest:?}"),
        })
    }

    /// A life begins that is all that a frozen one was, which may have died since.
    fn moved(&mut self, at: Time, process: &str, incarnation: u64, from: u64) -> Vec<Violation> {
        let mut found = Vec::new();
        let mut wrong = |text| {
            let promise = Promise::OneLife;
            found.push(Violation { promise, text });
        };
        let name = format!("incarnation {incarnation} of {process:?}, which was {from},");
        let last = self.lives.last();
        match last {
            Some(last) if last.incarnation == from => match &last.ended {
                None | Some((_, End::Crashed)) => {}
                Some(_) => wrong(format!("{name} begins, and {last:?} has ended")),
            },
            last => wrong(format!("{name} begins after {last:?}")),
        }
        if incarnation <= from {
            wrong(format!("{name} begins"));
        }
        if !self.frozen.contains_key(&from) {
            wrong(format!("{name} begins, and {from} does not stand still"));
        }
        self.lives.push(Life {
            incarnation,
            started: at,
            ended: None,
        });
        found
    }

    /// Between which moments an image that is whole at `at` was made.
    fn imaged(&self, at: Time, incarnation: u64) -> (Time, Time) {
        let begin = self.imaging.get(&incarnation).copied().unwrap_or(at);
        let mut lives = self.lives.iter();
        let next = lives.find(|life| life.incarnation > incarnation);
        // It is what its writer was, not what became of the process in another life meanwhile.
        let end = next.map_or(at, |next| next.started.min(at));
        let frozen = self.frozen.get(&incarnation).copied();
        let begin = frozen.map_or(begin, |frozen| frozen.min(begin));
        (begin.min(end), end)
    }

    fn durable(&mut self, at: Time, process: &str, image: Image) -> Option<Violation> {
        let (begin, end) = self.imaged(at, image.incarnation);
        // One that was deleted may come again; nobody began from the first.
        self.noted
            .retain(|noted| !matches!(noted, Noted::Image(other, ..) if *other == image));
        self.noted.push(Noted::Image(image, begin, end));
        if self.is_forgotten(image) {
            return None;
        }
        let twice = !self.there.insert(image);
        twice.then(|| Violation {
            promise: Promise::NewestImage,
            text: format!("image {image} of {process:?} is written twice"),
        })
    }

    fn started(
        &mut self,
        at: Time,
        process: &str,
        incarnation: u64,
        from: Option<Image>,
    ) -> Vec<Violation> {
        let mut found = Vec::new();
        let mut wrong = |promise, text| found.push(Violation { promise, text });
        let name = format!("incarnation {incarnation} of {process:?}");
        if let Some(last) = self.lives.last() {
            if last.incarnation >= incarnation {
                let text = format!("{name} begins after {}", last.incarnation);
                wrong(Promise::OneLife, text);
            }
            let forgotten = self.forgotten.filter(|(_, of)| *of == last.incarnation);
            match &last.ended {
                None => wrong(
                    Promise::OneLife,
                    format!("{name} begins, and {} has not ended", last.incarnation),
                ),
                Some((_, End::Swapped)) => {
                    let forgotten = forgotten.map(|(then, _)| Noted::Back(from, then, at));
                    self.noted.extend(forgotten);
                }
                Some((ended, End::Crashed | End::Stopped)) => {
                    self.noted.push(Noted::Back(from, *ended, at))
                }
            }
        }
        match from {
            Some(image) if !self.there.contains(&image) => {
                let text = format!("{name} begins from {image}, which is not whole");
                wrong(Promise::NewestImage, text);
            }
            from => {
                let newest = self.there.last().copied().max(self.committed);
                if from < newest {
                    let (from, newest) = (shown(from), shown(newest));
                    let text = format!("{name} begins from {from}, and not from {newest}");
                    wrong(Promise::NewestImage, text);
                }
            }
        }
        self.lives.push(Life {
            incarnation,
            started: at,
            ended: None,
        });
        found
    }

    /// Images that no crash goes back to need not be noted.
    fn unused_forget(&mut self) {
        let used: BTreeSet<Image> = self
            .noted
            .iter()
            .filter_map(|noted| match noted {
                Noted::Back(from, ..) => *from,
                Noted::Image(..) => None,
            })
            .collect();
        self.noted.retain(|noted| match noted {
            Noted::Image(image, ..) => used.contains(image),
            Noted::Back(..) => true,
        });
    }
}

fn shown(image: Option<Image>) -> String {
    image.map_or("nothing".into(), |image| format!("image {image}"))
}

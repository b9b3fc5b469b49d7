//! The names of functions of one process that a client uses.
//!
//! ```text
//!   name --> its place, which calls say --> forgotten: the place is another name's
//! ```
//!
//! Names are many at most, and whoever passes on what others ask for cannot choose them. So a name
//! that the process has answered to have no function, or that no process was ever told, makes room
//! for another one, once none is left and no call uses it. A place has a stamp for each of its names: what was looked up for one is
//! never taken for the next.

use std::collections::{HashMap, HashSet, VecDeque};

/// A name of a function that was looked up. Never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FunctionId {
    /// The place.
    pub(super) at: u32,
    stamp: u32,
}

#[derive(Debug)]
struct Named {
    name: Box<str>,
    stamp: u32,
    /// Whether no call was begun since the process said that it has no such function.
    unknown: bool,
    /// Whether it is among those that may be forgotten.
    listed: bool,
    /// Whether the process was ever told of it, and may have such a function.
    told: bool,
}

/// All names.
#[derive(Debug, Default)]
pub(super) struct Names {
    places: Vec<Named>,
    by_name: HashMap<Box<str>, u32>,
    /// Places of names that were unknown, the first one the longest ago.
    unknown: VecDeque<u32>,
}

impl Names {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// A name that was added.
    pub fn find(&self, name: &str) -> Option<FunctionId> {
        self.by_name.get(name).map(|at| self.id(*at))
    }

    /// What stands for the name that is at a place now.
    pub fn id(&self, at: u32) -> FunctionId {
        let stamp = self.places[at as usize].stamp;
        FunctionId { at, stamp }
    }

    /// Adds a name at a place of its own.
    pub fn add(&mut self, name: &str) -> FunctionId {
        let at = self.places.len() as u32;
        self.places.push(Named {
            name: name.into(),
            stamp: 0,
            unknown: false,
            listed: false,
            told: false,
        });
        self.by_name.insert(name.into(), at);
        self.id(at)
    }

    /// Adds a name in the place of one that is unknown and not `used`, if there is one.
    pub fn replace(&mut self, name: &str, used: &HashSet<u32>) -> Option<FunctionId> {
        for _ in 0..self.unknown.len() {
            let at = self.unknown.pop_front()?;
            let named = &mut self.places[at as usize];
            if named.unknown && used.contains(&at) {
                self.unknown.push_back(at);
                continue;
            }
            named.listed = false;
            if named.unknown {
                (named.unknown, named.told) = (false, false);
                named.stamp = named.stamp.wrapping_add(1);
                self.by_name.remove(&named.name);
                named.name = name.into();
                self.by_name.insert(name.into(), at);
                return Some(self.id(at));
            }
        }
        None
    }

    /// A call of it begins; whether it was not forgotten.
    #[inline]
    pub fn begin(&mut self, id: FunctionId) -> bool {
        let named = &mut self.places[id.at as usize];
        let there = named.stamp == id.stamp;
        if there && named.unknown {
            named.unknown = false;
        }
        there
    }

    /// The name at a place that a call uses.
    pub fn name(&self, at: u32) -> &str {
        &self.places[at as usize].name
    }

    /// Whether a name is not forgotten.
    pub fn is(&self, id: FunctionId) -> bool {
        self.id(id.at) == id
    }

    /// The process is told of a name.
    pub fn told(&mut self, at: u32) {
        let named = &mut self.places[at as usize];
        // One that was given up before may have left it for unknown.
        (named.told, named.unknown) = (true, false);
    }

    /// A call of it has ended before it was sent: unless the process was told of it for another
    /// one, there is nothing to remember.
    pub fn untold(&mut self, at: u32) {
        if !self.places[at as usize].told {
            self.unknown(at);
        }
    }

    /// The process has no such function.
    pub fn unknown(&mut self, at: u32) {
        let named = &mut self.places[at as usize];
        named.unknown = true;
        if !std::mem::replace(&mut named.listed, true) {
            self.unknown.push_back(at);
        }
    }
}

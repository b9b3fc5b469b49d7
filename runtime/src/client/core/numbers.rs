//! The numbers that stand for names of functions on one channel.
//!
//! ```text
//!   name, first call on the channel --> Intern(number, name) --> requests say the number
//!   all numbers are taken           --> the one that was given out the longest ago gets the name
//! ```
//!
//! What goes through a channel is heard in order, so a number may mean another name from one frame
//! to the next. The exception is a large request: its function is looked up when its payload is
//! there, which others may overtake. So the number of a name that one was sent under is kept until
//! it is answered, also if nobody waits for the answer.

use crate::invocation::CHANNEL_FUNCTIONS_MAX;

/// Stands for a function that has no number.
const NONE: u32 = u32::MAX;

/// Who has which number.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// By function.
    by_function: Vec<u32>,
    /// By number: its function, and for how many large requests it is kept.
    given: Vec<(u32, u32)>,
    /// The number that was given out the longest ago, once all are.
    oldest: usize,
}

impl Numbers {
    /// One function more, without a number.
    pub fn function_add(&mut self) {
        self.by_function.push(NONE);
    }

    /// Another function has this one's place, and no number.
    pub fn function_replace(&mut self, function: u32) {
        self.by_function[function as usize] = NONE;
    }

    /// A new channel, which knows no names.
    pub fn clear(&mut self) {
        self.by_function.fill(NONE);
        self.given.clear();
        self.oldest = 0;
    }

    /// The number of a function, if the channel knows its name.
    #[inline]
    pub fn number(&self, function: u32) -> Option<u32> {
        let number = self.by_function[function as usize];
        (number != NONE).then_some(number)
    }

    /// The number that the next name gets; none if all are kept.
    pub fn vacant(&self) -> Option<u32> {
        if self.given.len() < CHANNEL_FUNCTIONS_MAX {
            return Some(self.given.len() as u32);
        }
        let from_oldest = (self.oldest..self.given.len()).chain(0..self.oldest);
        let mut free = from_oldest.filter(|number| self.given[*number].1 == 0);
        free.next().map(|number| number as u32)
    }

    /// The channel has been told that a number, which was vacant, is this function's.
    pub fn give(&mut self, number: u32, function: u32) {
        let at = number as usize;
        match self.given.get_mut(at) {
            Some((before, _)) => {
                let had = &mut self.by_function[*before as usize];
                if *had == number {
                    *had = NONE;
                }
                *before = function;
                self.oldest = (at + 1) % self.given.len();
            }
            None => self.given.push((function, 0)),
        }
        self.by_function[function as usize] = number;
    }

    /// A large request is on its way to a function: its number stays its own.
    pub fn keep(&mut self, function: u32) {
        let number = self.by_function[function as usize];
        if let Some((_, kept)) = self.given.get_mut(number as usize) {
            *kept += 1;
        }
    }

    /// A large request to a function was answered on this channel.
    pub fn answered(&mut self, function: u32) {
        self.let_go(self.by_function[function as usize]);
    }

    /// A large request under a number, whose function may be forgotten, was answered.
    pub fn let_go(&mut self, number: u32) {
        if let Some((_, kept)) = self.given.get_mut(number as usize) {
            *kept = kept.saturating_sub(1);
        }
    }
}

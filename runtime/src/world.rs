//! The world view: the members of an application, in order, with a generation.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use praas_transport::Address;
use praas_transport::clock;
use praas_transport::wire::Incarnation;
use serde::{Deserialize, Serialize};

/// What a member of an application is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MemberState {
    /// It is being started or swapped in.
    Starting,
    /// It serves.
    Ready,
    /// It is in storage, and comes back when it is needed.
    Swapped,
    /// It is gone.
    Gone,
}

/// A process of the application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// What it is doing.
    pub state: MemberState,
    /// Where it listens, while it is ready.
    pub addresses: Vec<Address>,
}

/// The members of an application at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct World {
    /// Grows with every change.
    pub generation: u64,
    /// The members, by name.
    pub members: Vec<Member>,
}

/// A world view that others wait on.
#[derive(Debug, Default)]
pub struct WorldView {
    world: Mutex<World>,
    changed: Condvar,
}

impl WorldView {
    /// The view now.
    pub fn now(&self) -> World {
        self.lock().clone()
    }

    /// Takes a newer view; an older one changes nothing.
    pub fn update(&self, world: World) {
        let mut current = self.lock();
        if world.generation > current.generation {
            *current = world;
            self.changed.notify_all();
        }
    }

    /// Waits until the generation is above `after` or the deadline passes; the view then.
    pub fn wait(&self, after: u64, deadline: Option<Instant>) -> World {
        let mut world = self.lock();
        while world.generation <= after {
            world = match deadline {
                None => self
                    .changed
                    .wait(world)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(clock::now());
                    if left.is_zero() {
                        break;
                    }
                    let waited = self.changed.wait_timeout(world, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        world.clone()
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads arbitrary bytes as a world view: what is accepted reads the same once encoded.
#[doc(hidden)]
pub fn fuzz_world(bytes: &[u8]) {
    if let Ok(world) = crate::codec::decode::<World>(bytes) {
        let again = crate::codec::encode(&world).expect("a world view has an encoding");
        assert_eq!(crate::codec::decode::<World>(&again), Ok(world));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_view_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz_world(&bytes);
        }
    }
}

//! Credit: how many frames a peer may have on the way to us, so that a receive is posted for each.
//!
//! ```text
//!   granted to the peer = not yet arrived + arrived and not yet read        (<= target)
//!   what may be granted = target - granted
//! ```
//!
//! Every peer has a target of its own, so the receives that must be posted are the targets' sum.
//! An idle peer has the smallest; one that sends is given more, as long as there are spare
//! receives. A frame costs its sender one credit, also one that only returns credit. Such a one may
//! take the sender's last credit, and nothing else may: so two sides that have run out at once both
//! have one left to tell each other that there is room again. They do not answer each other for
//! ever, since a side says so only when it has half a window to return.

/// What a peer may send us.
#[derive(Debug)]
pub(super) struct Window {
    target: u32,
    not_arrived: u32,
    not_read: u32,
}

impl Window {
    /// With the smallest window that an idle peer has; the credits are granted already.
    pub(super) fn new(target: u32) -> Self {
        Self {
            target,
            not_arrived: target,
            not_read: 0,
        }
    }

    pub(super) fn target(&self) -> u32 {
        self.target
    }

    /// Makes the window wider.
    pub(super) fn widen(&mut self, by: u32) {
        self.target += by;
    }

    /// A frame arrived: `false` if the peer had no credit for it.
    #[inline]
    #[must_use]
    pub(super) fn arrived(&mut self) -> bool {
        match self.not_arrived.checked_sub(1) {
            Some(left) => {
                self.not_arrived = left;
                self.not_read += 1;
                true
            }
            None => false,
        }
    }

    /// A frame that had arrived was read, so its receive can be posted again.
    #[inline]
    pub(super) fn read(&mut self) {
        debug_assert!(self.not_read > 0);
        self.not_read -= 1;
    }

    #[inline]
    fn grantable(&self) -> u32 {
        self.target - self.not_arrived - self.not_read
    }

    /// Whether so much may be granted that it is worth a frame of its own.
    #[inline]
    pub(super) fn owes(&self) -> bool {
        self.grantable() * 2 >= self.target
    }

    /// Grants what may be granted, up to `max`.
    #[inline]
    pub(super) fn grant(&mut self, max: u32) -> u32 {
        let grant = self.grantable().min(max);
        self.not_arrived += grant;
        grant
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    struct Side {
        window: Window,
        credits: u32,
        inbox: VecDeque<(bool, u32)>,
        unread: u32,
        sent: u32,
    }

    impl Side {
        fn new(target: u32) -> Self {
            Self {
                window: Window::new(target),
                credits: target,
                inbox: VecDeque::new(),
                unread: 0,
                sent: 0,
            }
        }

        fn credit_due(&mut self, peer: &mut Self) {
            if self.window.owes() && self.credits >= 1 {
                self.credits -= 1;
                let grant = self.window.grant(u32::MAX);
                peer.inbox.push_back((false, grant));
            }
        }

        fn send(&mut self, peer: &mut Self) -> bool {
            if self.credits < 2 {
                return false;
            }
            self.credits -= 1;
            self.sent += 1;
            let grant = self.window.grant(u32::MAX);
            peer.inbox.push_back((true, grant));
            true
        }

        fn poll(&mut self) {
            let Some((data, grant)) = self.inbox.pop_front() else {
                return;
            };
            assert!(self.window.arrived());
            self.credits += grant;
            match data {
                true => self.unread += 1,
                false => self.window.read(),
            }
        }

        fn read(&mut self) {
            if self.unread > 0 {
                self.unread -= 1;
                self.window.read();
            }
        }
    }

    proptest! {
        /// Whatever the two sides do in whatever order, once both go on they can send again, and
        /// they fall silent when they have nothing to say.
        #[test]
        fn nobody_is_stuck_or_chatters_for_ever(
            a_target in 4_u32..20,
            b_target in 4_u32..20,
            steps in proptest::collection::vec(0_u8..8, 0..400),
        ) {
            let (mut a, mut b) = (Side::new(b_target), Side::new(a_target));
            a.window = Window::new(a_target);
            b.window = Window::new(b_target);
            for step in steps {
                match step {
                    0 => drop(a.send(&mut b)),
                    1 => drop(b.send(&mut a)),
                    2 => a.poll(),
                    3 => b.poll(),
                    4 => { a.read(); a.credit_due(&mut b); }
                    5 => { b.read(); b.credit_due(&mut a); }
                    6 => a.window.widen(1),
                    _ => b.window.widen(1),
                }
                let on_the_way = |side: &Side| side.inbox.len() as u32;
                prop_assert!(on_the_way(&a) + a.unread <= a.window.target());
                prop_assert!(on_the_way(&b) + b.unread <= b.window.target());
            }
            let mut rounds = 0;
            while !a.inbox.is_empty() || !b.inbox.is_empty() || a.unread + b.unread > 0 {
                rounds += 1;
                prop_assert!(rounds < 1000, "the two go on for ever");
                a.poll();
                a.read();
                a.credit_due(&mut b);
                b.poll();
                b.read();
                b.credit_due(&mut a);
            }
            prop_assert!(a.send(&mut b), "the first side is stuck");
            prop_assert!(b.send(&mut a), "the second side is stuck");
        }
    }

    #[test]
    fn a_frame_without_credit_is_seen() {
        let mut window = Window::new(4);
        for _ in 0..4 {
            assert!(window.arrived());
        }
        assert!(!window.arrived());
    }
}

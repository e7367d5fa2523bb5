//! How many clients the socket has at once: an application that fills its share must not keep root's checks and
//! role tools from asking.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// For root alone. Its checks and tools ask one thing at a time.
const OF_ROOT: usize = 64;
/// For all others together.
const OF_OTHERS: usize = 512;
/// For one of the others.
const OF_ONE: usize = 384;

/// Who has a slot, by user.
#[derive(Debug, Default)]
pub struct Slots {
    taken: Mutex<HashMap<u32, usize>>,
}

/// A slot; it is free again when the value is dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    user: u32,
}

impl Slots {
    /// A slot for a user; none when its share is used up.
    pub fn take(self: &Arc<Self>, user: u32) -> Option<Slot> {
        let mut taken = self.taken();
        let own = taken.get(&user).copied().unwrap_or_default();
        let free = if user == 0 {
            own < OF_ROOT
        } else {
            let others: usize = taken
                .iter()
                .filter(|(user, _)| **user != 0)
                .map(|(_, count)| count)
                .sum();
            own < OF_ONE && others < OF_OTHERS
        };
        free.then(|| {
            taken.insert(user, own + 1);
            Slot {
                slots: Arc::clone(self),
                user,
            }
        })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken();
        let left = taken.get(&self.user).map_or(0, |count| count - 1);
        if left == 0 {
            taken.remove(&self.user);
        } else {
            taken.insert(self.user, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_uses_up_what_is_for_root() {
        let slots = Arc::new(Slots::default());
        let of_one: Vec<Slot> = (0..OF_OTHERS).map_while(|_| slots.take(33)).collect();
        assert_eq!(of_one.len(), OF_ONE);
        let of_another: Vec<Slot> = (0..OF_OTHERS).map_while(|_| slots.take(1000)).collect();
        assert_eq!(of_one.len() + of_another.len(), OF_OTHERS);
        assert!(slots.take(1001).is_none());
        let of_root: Vec<Slot> = (0..OF_OTHERS).map_while(|_| slots.take(0)).collect();
        assert_eq!(of_root.len(), OF_ROOT);
        drop(of_one);
        assert!(slots.take(1001).is_some());
        drop((of_another, of_root));
        assert!(slots.taken().is_empty());
    }
}

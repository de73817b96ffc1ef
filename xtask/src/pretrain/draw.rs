//! Choosing at random, from nothing but a seed, a purpose and a number.

use lowrank_ops::rng::{Key, Purpose, Stream};

/// The seed of everything that `pretrain` makes.
pub const SEED: u64 = 42;

/// An endless row of choices.
pub struct Draw(Stream);

impl Draw {
    /// The choices of the `number`-th thing of its kind.
    pub fn new(what: &str, number: u64) -> Self {
        Self(
            Key::new(SEED, Purpose::Init)
                .site(what)
                .step(number)
                .stream(),
        )
    }

    /// A number from 0 to below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0.below(n as u64) as usize
    }

    /// One of the list, each as likely as the others.
    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// `n` different ones of the list.
    pub fn several<T: Copy>(&mut self, list: &[T], n: usize) -> Vec<T> {
        let order = self.0.permutation(list.len());
        order.into_iter().take(n).map(|i| list[i]).collect()
    }

    /// A normal number of mean 0 and deviation 1.
    pub fn normal(&mut self) -> f64 {
        self.0.normal()
    }
}

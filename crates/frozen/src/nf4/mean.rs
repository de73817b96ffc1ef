//! The mean of f32 numbers as torch computes it.
//!
//! bitsandbytes subtracts it from the scales, and the bits of all that follows depend on its last one. So sums are taken
//! in torch's order on x86-64 and one thread: eight lanes wide, four rows at a time, and partial sums in levels, so that
//! a sum of many numbers never swallows a single one.

/// Lanes of torch's vectors, whatever the machine has.
const LANES: usize = 8;

/// Levels of partial sums.
const LEVELS: usize = 4;

/// Rows that are summed beside each other.
const ROWS: usize = 4;

type Rows<const N: usize> = [[f32; N]; ROWS];

pub(super) fn mean(numbers: &[f32]) -> f32 {
    sum(numbers) / numbers.len() as f32
}

fn sum(numbers: &[f32]) -> f32 {
    if numbers.len() < LANES {
        return lanes::<1>(numbers)[0];
    }
    let (_, rest) = numbers.as_chunks::<LANES>();
    let lanes = lanes::<LANES>(numbers);
    rest.iter().chain(&lanes).fold(0.0, |sum, x| sum + x)
}

/// Each lane's sum over the whole rows of `N` numbers.
fn lanes<const N: usize>(numbers: &[f32]) -> [f32; N] {
    let (rows, _) = numbers.as_chunks::<N>();
    let (groups, rest) = rows.as_chunks::<ROWS>();
    let [mut sum, others @ ..] = levels(groups);
    for row in rest.iter().chain(&others) {
        add(&mut sum, row);
    }
    sum
}

fn levels<const N: usize>(groups: &[Rows<N>]) -> Rows<N> {
    // A level holds so many sums of the level below it, in powers of two.
    let size = groups.len().max(1).next_power_of_two().ilog2();
    let power = (size as usize / LEVELS).max(4);
    let step = 1 << power;
    let mut levels = [[[0.0; N]; ROWS]; LEVELS];
    let (mut whole, mut seen) = (groups.chunks_exact(step), 0usize);
    for groups in &mut whole {
        for group in groups {
            add_all(&mut levels[0], group);
        }
        seen += 1;
        for level in 1..LEVELS {
            let below = std::mem::replace(&mut levels[level - 1], [[0.0; N]; ROWS]);
            add_all(&mut levels[level], &below);
            if !seen.is_multiple_of(1 << (power * level)) {
                break;
            }
        }
    }
    for group in whole.remainder() {
        add_all(&mut levels[0], group);
    }
    let [mut sum, above @ ..] = levels;
    for level in &above {
        add_all(&mut sum, level);
    }
    sum
}

fn add_all<const N: usize>(sum: &mut Rows<N>, rows: &Rows<N>) {
    for (sum, row) in sum.iter_mut().zip(rows) {
        add(sum, row);
    }
}

fn add<const N: usize>(sum: &mut [f32; N], row: &[f32; N]) {
    for (sum, x) in sum.iter_mut().zip(row) {
        *sum += x;
    }
}

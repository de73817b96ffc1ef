//! Keyed random numbers: pinned, because a run must draw the same ones after an update, and plausible.

use candle_core::{Device, Tensor};
use lowrank_ops as ops;
use ops::rng::{Key, Purpose};

#[test]
fn pinned() {
    let key = Key::new(42, Purpose::Init)
        .step(3)
        .micro(2)
        .site("model.layers.0.self_attn.q_proj");
    let mut stream = key.stream();
    assert_eq!(
        [stream.bits(), stream.bits()],
        [4381215008034103119, 11660513600358788452]
    );
    assert_eq!(key.stream().uniform(), 0.23750614149183347);
    assert_eq!(key.stream().below(1_000_000), 103_119);
    assert_eq!(key.stream().permutation(10), [3, 0, 2, 8, 5, 4, 1, 6, 7, 9]);
    // Logarithm and sine come from the platform's library, so the last bits are its own.
    let mut stream = key.stream();
    for expected in [
        -0.49693008068925343,
        -0.5434907035113162,
        0.45540042591843005,
    ] {
        let normal = stream.normal();
        assert!((normal - expected).abs() < 1e-14, "{normal}");
    }
}

#[test]
fn pinned_dropout() -> Result<(), Box<dyn std::error::Error>> {
    let key = Key::new(42, Purpose::Init)
        .step(3)
        .micro(2)
        .site("model.layers.0.self_attn.q_proj");
    let x = Tensor::ones(12, candle_core::DType::F32, &Device::Cpu)?;
    let y = ops::dropout(&x, 0.5, key)?.to_vec1::<f32>()?;
    assert_eq!(y, [0., 0., 2., 2., 2., 0., 2., 0., 2., 0., 0., 0.]);
    Ok(())
}

#[test]
fn every_part_of_a_key_matters() {
    let key = Key::new(42, Purpose::Init);
    let keys = [
        key,
        Key::new(43, Purpose::Init),
        Key::new(42 << 32, Purpose::Init),
        key.purpose(Purpose::Dropout),
        key.purpose(Purpose::Shuffle),
        key.purpose(Purpose::Gate),
        key.purpose(Purpose::Revive),
        key.purpose(Purpose::Test),
        key.step(1),
        key.step(1 << 32),
        key.micro(1),
        key.site(""),
        key.site("a"),
        key.site("b"),
        key.site("ab"),
        key.site("ba"),
    ];
    let firsts = keys.map(|key| key.stream().bits());
    for (at, first) in firsts.iter().enumerate() {
        assert!(
            !firsts[..at].contains(first),
            "{:?} draws as another",
            keys[at]
        );
        assert_eq!(keys[at].stream().bits(), *first);
    }
}

#[test]
fn uniform_and_normal_have_their_moments() {
    let mut stream = Key::new(7, Purpose::Test).stream();
    let count = 100_000;
    let mean = |numbers: &[f64], power: i32| {
        numbers.iter().map(|x| x.powi(power)).sum::<f64>() / numbers.len() as f64
    };
    let uniform: Vec<f64> = (0..count).map(|_| stream.uniform()).collect();
    assert!(uniform.iter().all(|x| (0.0..1.0).contains(x)));
    assert!(
        (mean(&uniform, 1) - 0.5).abs() < 0.005,
        "{}",
        mean(&uniform, 1)
    );
    assert!((mean(&uniform, 2) - 1.0 / 3.0).abs() < 0.005);
    let normal: Vec<f64> = (0..count).map(|_| stream.normal()).collect();
    for (power, expected, tolerance) in [
        (1, 0.0, 0.015),
        (2, 1.0, 0.02),
        (3, 0.0, 0.06),
        (4, 3.0, 0.15),
    ] {
        let moment = mean(&normal, power);
        assert!(
            (moment - expected).abs() < tolerance,
            "moment {power} is {moment}"
        );
    }
}

#[test]
fn below_is_even() {
    let mut stream = Key::new(7, Purpose::Test).stream();
    let mut counts = [0u32; 7];
    for _ in 0..70_000 {
        counts[stream.below(7) as usize] += 1;
    }
    // Five standard deviations of a binomial.
    assert!(
        counts.iter().all(|count| count.abs_diff(10_000) < 470),
        "{counts:?}"
    );
    // Two thirds of 2^64: a plain remainder would favour the lower half two to one.
    let n = u64::MAX / 3 * 2;
    let low = (0..10_000).filter(|_| stream.below(n) < n / 2).count();
    assert!(low.abs_diff(5000) < 250, "{low}");
    assert_eq!(stream.below(1), 0);
}

#[test]
fn permutations_are_permutations() {
    let mut stream = Key::new(7, Purpose::Shuffle).stream();
    for n in [0, 1, 2, 100] {
        let mut order = stream.permutation(n);
        order.sort_unstable();
        assert!(order.into_iter().eq(0..n));
    }
    let mut firsts = [0u32; 3];
    for _ in 0..9000 {
        firsts[stream.permutation(3)[0]] += 1;
    }
    assert!(
        firsts.iter().all(|count| count.abs_diff(3000) < 225),
        "{firsts:?}"
    );
}

#[test]
fn dropout_keeps_the_share_and_the_mean() -> Result<(), Box<dyn std::error::Error>> {
    let key = Key::new(9, Purpose::Dropout).step(4).site("layers.1.mlp");
    let x = Tensor::ones((103, 997), candle_core::DType::F32, &Device::Cpu)?;
    let y = ops::dropout(&x, 0.3, key)?
        .flatten_all()?
        .to_vec1::<f32>()?;
    let kept = y.iter().filter(|y| **y != 0.0).count() as f64 / y.len() as f64;
    assert!((kept - 0.7).abs() < 0.008, "{kept}");
    assert!(y.iter().all(|y| *y == 0.0 || *y == (1.0 / 0.7) as f32));
    // The place decides, not the shape, nor what comes after it.
    let start = x.narrow(0, 0, 50)?.reshape((997, 50))?;
    let again = ops::dropout(&start, 0.3, key)?
        .flatten_all()?
        .to_vec1::<f32>()?;
    assert_eq!(again, y[..again.len()]);
    let other = ops::dropout(&x, 0.3, key.step(5))?
        .flatten_all()?
        .to_vec1::<f32>()?;
    let both = y
        .iter()
        .zip(&other)
        .filter(|(y, other)| **y != 0.0 && **other != 0.0)
        .count() as f64;
    assert!((both / y.len() as f64 - 0.49).abs() < 0.008);
    Ok(())
}

#[test]
fn dropout_of_nothing_and_of_everything() -> Result<(), Box<dyn std::error::Error>> {
    let key = Key::new(9, Purpose::Dropout);
    let x = Tensor::new(&[[1.5f32, -2., 3.]], &Device::Cpu)?;
    assert_eq!(
        ops::dropout(&x, 0.0, key)?.to_vec2::<f32>()?,
        [[1.5, -2., 3.]]
    );
    assert_eq!(ops::dropout(&x, 1.0, key)?.to_vec2::<f32>()?, [[0.0; 3]]);
    Ok(())
}

//! The exponential of f32 against that of f64.

use lowrank_ops::Float;

fn exp(x: f32) -> f32 {
    Float::exp(x)
}

#[test]
fn exp_is_close_everywhere() {
    for step in -870_000..887_000 {
        let x = step as f32 * 1e-4;
        let expected = f64::from(x).exp();
        let off = (f64::from(exp(x)) / expected - 1.0).abs();
        assert!(off < 1.5e-7, "exp({x}) is off by {off:e}");
    }
}

#[test]
fn exp_at_the_edges() {
    assert_eq!([exp(0.0), exp(-0.0)], [1.0, 1.0]);
    assert_eq!([exp(f32::NEG_INFINITY), exp(-1e30), exp(-104.5)], [0.0; 3]);
    assert_eq!(
        [exp(f32::INFINITY), exp(1e30), exp(88.8)],
        [f32::INFINITY; 3]
    );
    assert!(exp(f32::NAN).is_nan() && exp(-f32::NAN).is_nan());
    // Denormal results.
    for x in [-88.0f32, -95.0, -103.0] {
        let off = (f64::from(exp(x)) - f64::from(x).exp()).abs();
        assert!(off <= f64::from(f32::from_bits(1)), "exp({x})");
    }
}

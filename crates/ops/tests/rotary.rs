//! Scaled frequencies against values from a separate computation in Python, in double precision.

use lowrank_ops::{RotaryScaling, RotaryTable};

/// Of Llama 3.2: head_dim 64, theta 500000, factor 32, low 1, high 4, context 8192. From
/// `q = theta ** (-i / 64)`, `w = 2 pi / q`, and `q / 32`, `q`, or `(1 - s) * q / 32 + s * q` with
/// `s = (8192 / w - 1) / 3`.
const LLAMA_3_2: [f64; 32] = [
    1.0,
    0.6636012376960885,
    0.44036660267178046,
    0.2922278225730151,
    0.19392274474868576,
    0.12868737343265052,
    0.08539710028576561,
    0.05666962144529105,
    0.03760603093086393,
    0.024955408670558694,
    0.016560440080994446,
    0.010989528534539826,
    0.007292664737217109,
    0.004839421345719893,
    0.003211445994752591,
    0.001290547928209264,
    0.00042955679655936815,
    9.70828780262767e-05,
    1.9461638184831125e-05,
    1.291476718704739e-05,
    8.570255489881478e-06,
    5.687232150457046e-06,
    3.7740542941082826e-06,
    2.5044671007024935e-06,
    1.6619674677953088e-06,
    1.102883668639601e-06,
    7.318749675440419e-07,
    4.856731343010108e-07,
    3.2229329303788936e-07,
    2.1387422816109149e-07,
    1.4192720251899592e-07,
    9.41830672543491e-08,
];

#[track_caller]
fn check(scaling: &RotaryScaling, expected: impl Iterator<Item = f64>) {
    let table = RotaryTable::new(64, 500_000.0, scaling).expect("valid");
    assert_eq!((table.head_dim(), table.frequencies().len()), (64, 32));
    for (pair, (got, expected)) in table.frequencies().iter().zip(expected).enumerate() {
        // Interpolation subtracts numbers of one size, so a few roundings of f32 remain.
        let off = (f64::from(*got) / expected - 1.0).abs();
        assert!(off < 1e-6, "pair {pair}: {got} {expected}");
    }
}

#[test]
fn llama_3_scaling() {
    let scaling = RotaryScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    check(&scaling, LLAMA_3_2.into_iter());
}

#[test]
fn linear_scaling_divides() {
    let unscaled = |pair: i32| 500_000f64.powf(f64::from(-2 * pair) / 64.0);
    check(&RotaryScaling::None, (0..32).map(unscaled));
    let halved = (0..32).map(|pair| unscaled(pair) / 2.5);
    check(&RotaryScaling::Linear { factor: 2.5 }, halved);
}

//! Three layers of two numbers each: outputs, losses and gradients by hand.

use super::*;

/// h_2, the loss, and the gradients of A_0 and B_0.
struct Row {
    keys: Value,
    output: [f64; 4],
    loss: f64,
    a_grad: [f64; 2],
    b_grad: [f64; 2],
}

fn row(keys: Value, output: [f64; 4], loss: f64, a_grad: [f64; 2], b_grad: [f64; 2]) -> Row {
    Row {
        keys,
        output,
        loss,
        a_grad,
        b_grad,
    }
}

fn table() -> Vec<Row> {
    vec![
        row(
            json!({ "res_type": "bs", "pre_num": 0 }),
            [1.0, 3.5, 0.25, -4.75],
            17.9375,
            [18.5625, 10.40625],
            [37.125, -7.5],
        ),
        row(
            json!({ "res_type": "ms", "pre_num": 0 }),
            [1.0, 3.5, 0.25, -4.75],
            17.9375,
            [18.5625, 10.40625],
            [37.125, -7.5],
        ),
        row(
            json!({ "res_type": "is" }),
            [-2.5, 6.75, 1.25, -8.625],
            63.882_812_5,
            [80.625, 50.3125],
            [161.25, 7.5],
        ),
        row(
            json!({ "res_type": "bs", "pre_num": 1 }),
            [2.0, 5.0, -0.75, -4.375],
            24.351_562_5,
            [39.28125, 27.0625],
            [78.5625, 44.9375],
        ),
        row(
            json!({ "res_type": "bs", "pre_num": -1 }),
            [6.0, 5.0, -2.25, -4.375],
            42.601_562_5,
            [99.65625, 75.375],
            [199.3125, 120.0625],
        ),
        row(
            json!({ "res_type": "ms", "pre_num": 1 }),
            [1.0, 4.25, 2.75, -6.75],
            36.09375,
            [40.25, 14.5625],
            [64.0, -27.25],
        ),
        row(
            json!({ "res_type": "ms", "pre_num": -1 }),
            [0.0, 4.75, 3.75, -7.25],
            44.59375,
            [55.5, 19.75],
            [73.5, -35.25],
        ),
    ]
}

/// The layers with the factors of the table.
pub(crate) fn toy(keys: &Value, dtype: DType) -> (Layers, Attached) {
    let cast = |tensor: Tensor| tensor.to_dtype(dtype).unwrap();
    let weights = [
        matrix(&[&[1.0, 0.0], &[0.0, 1.0]]),
        matrix(&[&[0.0, 1.0], &[1.0, 0.0]]),
        matrix(&[&[1.0, 1.0], &[0.0, 1.0]]),
    ];
    let x = matrix(&[&[1.0, 2.0], &[-1.0, 0.5]]);
    let mut layers = Layers::new(cast(x), weights.into_iter().map(cast).collect());
    let mut keys = keys.clone();
    keys["r"] = json!(1);
    keys["lora_alpha"] = json!(2);
    let attached = layers.adapt(&keys);
    let factors = [
        ([1.0, 0.0], [0.5, 0.0]),
        ([1.0, -1.0], [0.0, 0.25]),
        ([0.5, 1.0], [-0.5, 0.25]),
    ];
    for (i, (a, b)) in factors.into_iter().enumerate() {
        let set = |name, value: Tensor| param(&attached, i, name).set(&cast(value)).unwrap();
        set("lora_A.weight", matrix(&[&a]));
        set("lora_B.weight", matrix(&[&[b[0]], &[b[1]]]));
    }
    (layers, attached)
}

#[test]
fn outputs_and_losses() {
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-12)] {
        for row in table() {
            let (layers, attached) = toy(&row.keys, dtype);
            for mut pass in [evaluation(), training()] {
                let h = layers.run(&layers.x, &mut pass);
                assert_near(&numbers(&h), &row.output, tolerance);
            }
            let losses = numbers(&layers.sweep(&attached, Memory::Keep).losses);
            assert_near(&[losses.iter().sum()], &[row.loss], tolerance);
        }
    }
}

/// With the shortcut of `is` detached, the gradients of A_0 and B_0 would be [69.1875, 41.34375] and [138.375, -38.25].
#[test]
fn gradients_flow_through_shortcuts_over_the_cuts_of_the_graph() {
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-12)] {
        for row in table() {
            let (layers, attached) = toy(&row.keys, dtype);
            let check = |grads: [&Tensor; 2]| {
                assert_near(&numbers(grads[0]), &row.a_grad, tolerance);
                assert_near(&numbers(grads[1]), &row.b_grad, tolerance);
            };
            for memory in [Memory::Keep, Memory::Recompute] {
                let swept = layers.sweep(&attached, memory);
                let names = ["lora_A.weight", "lora_B.weight"];
                let grad = |name| swept.grads.get(param(&attached, 0, name)).unwrap();
                check(names.map(grad));
            }
            let (whole, _) = whole_gradients(&layers, &attached);
            check([&whole[0], &whole[1]]);
        }
    }
}

#[test]
fn gradients_are_differences() {
    const STEP: f64 = 1e-6;
    for row in table() {
        let (layers, attached) = toy(&row.keys, DType::F64);
        let (params, x) = whole_gradients(&layers, &attached);
        let nudged = |value: &Tensor, i: usize, by: f64| {
            let mut flat = numbers(value);
            flat[i] += by;
            Tensor::from_vec(flat, value.shape(), &Device::Cpu).unwrap()
        };
        for (param, grad) in attached.trained().iter().zip(&params) {
            let start = param.snapshot().unwrap();
            for (i, expected) in numbers(grad).into_iter().enumerate() {
                let at = |by: f64| {
                    param.set(&nudged(&start, i, by)).unwrap();
                    loss(&layers, &layers.x)
                };
                let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
                param.set(&start).unwrap();
                assert_near(&[slope], &[expected], 1e-6);
            }
        }
        for (i, expected) in numbers(&x).into_iter().enumerate() {
            let at = |by: f64| loss(&layers, &nudged(&layers.x, i, by));
            let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            assert_near(&[slope], &[expected], 1e-6);
        }
    }
}

//! Where dropout falls.

use super::*;
use lowrank_ops as ops;

const P: f64 = 0.3;

/// Two layers with dropout, and their inputs.
fn two(res_type: &str) -> (Layers, Attached, [Tensor; 2]) {
    let mut layers = Layers::random(&[(7, 5); 2], DType::F64);
    let keys = json!({ "r": 2, "lora_alpha": 3, "res_type": res_type, "lora_dropout": P });
    let attached = layers.adapt(&keys);
    randomise(&attached);
    let inputs = [0, 1].map(|i| random(&format!("x {i}"), &[4, 5]));
    (layers, attached, inputs)
}

/// What each adds to its base's output in training.
fn updates(layers: &Layers, inputs: &[Tensor]) -> Vec<Tensor> {
    let outputs = layers.outputs(inputs, &mut training());
    let pairs = layers.layers.iter().zip(inputs).zip(outputs);
    let updates = pairs.map(|((layer, x), y)| y - layer.base().forward(x).unwrap());
    updates.map(std::result::Result::unwrap).collect()
}

/// The mask of layer `i`, applied.
fn dropped(x: &Tensor, i: usize) -> Tensor {
    let path = format!("model.layers.{i}.self_attn.q_proj");
    let key = training().rng().purpose(Purpose::Dropout).site(&path);
    ops::dropout(x, P, key).unwrap()
}

fn down(attached: &Attached, x: &Tensor, i: usize) -> Tensor {
    let a = param(attached, i, "lora_A.weight").value();
    x.matmul(&a.t().unwrap()).unwrap()
}

fn up(attached: &Attached, h: &Tensor, i: usize) -> Tensor {
    let b = param(attached, i, "lora_B.weight").value();
    (h.matmul(&b.t().unwrap()).unwrap() * 1.5).unwrap()
}

#[test]
fn an_input_shortcut_drops_of_the_sum() {
    let (layers, attached, inputs) = two("is");
    let (updates, [x, z]) = (updates(&layers, &inputs), inputs);
    let expected = down(&attached, &dropped(&(&x + &x).unwrap(), 0), 0);
    assert_close(&updates[0], &up(&attached, &expected, 0), 1e-12);
    let expected = down(&attached, &dropped(&(&x + &z).unwrap(), 1), 1);
    assert_close(&updates[1], &up(&attached, &expected, 1), 1e-12);
}

#[test]
fn a_middle_shortcut_hands_on_what_was_dropped_of() {
    let (layers, attached, inputs) = two("ms");
    let (updates, [x, z]) = (updates(&layers, &inputs), inputs);
    let u = [(&x, 0), (&z, 1)].map(|(x, i)| down(&attached, &dropped(x, i), i));
    assert_close(&updates[0], &up(&attached, &u[0], 0), 1e-12);
    let sum = (&u[0] + &u[1]).unwrap();
    assert_close(&updates[1], &up(&attached, &sum, 1), 1e-12);
}

#[test]
fn every_block_of_a_block_shortcut_draws_its_own_mask() {
    let (layers, attached, inputs) = two("bs");
    let found = updates(&layers, &inputs);
    let [x, z] = &inputs;
    let own = |x: &Tensor, i| up(&attached, &down(&attached, &dropped(x, i), i), i);
    assert_close(&found[0], &own(x, 0), 1e-12);
    // The block before sees the same input, under neither layer's mask, and not without one.
    let rest = (&found[1] - own(z, 1)).unwrap();
    for other in [z.clone(), dropped(z, 0), dropped(z, 1)] {
        let without_its_mask = up(&attached, &down(&attached, &other, 0), 0);
        assert!(relative_error(&without_its_mask, &rest) > 1e-3);
    }
    let b = param(&attached, 0, "lora_B.weight");
    b.set(&b.value().zeros_like().unwrap()).unwrap();
    assert_close(&updates(&layers, &inputs)[1], &own(z, 1), 1e-12);
}

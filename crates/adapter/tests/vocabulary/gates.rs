use crate::{Q0, matrix, parse, randomise, toy};
use candle_core::{Device, Tensor};
use lowrank_adapter::{
    Ask, Attached, Mask, Masks, Memory, Pass, Selection, Share, Start, attach, run, sweep,
};
use lowrank_conformance::families::{Gated, InputDependent};
use lowrank_conformance::toy::{Toy, padded};
use lowrank_ops::rng::{Key, Purpose};
use serde_json::json;

fn gated(toy: &mut Toy) -> Attached {
    let keys = json!({"r": 3, "target_modules": [Q0, "model.layers.1.mlp.up_proj"]});
    let config = parse(&Gated, keys).unwrap();
    let attached = attach(toy, "one", &config, Start::Seed(3)).unwrap();
    for param in attached.trained() {
        randomise(&param, "gated");
    }
    attached
}

#[test]
fn gates_know_their_names_and_tensors() {
    let mut toy = toy();
    let attached = gated(&mut toy);
    let [one, two] = &attached.gates[..] else {
        panic!("{} gates", attached.gates.len());
    };
    assert_ne!(one.id(), two.id());
    assert_eq!((one.capacity(), one.live().unwrap()), (3, vec![true; 3]));
    let names: Vec<&str> = two.gated().map(|param| param.name()).collect();
    assert_eq!(
        names,
        [
            "model.layers.1.mlp.up_proj.lora_A.weight",
            "model.layers.1.mlp.up_proj.lora_B.weight"
        ]
    );
    let exported = attached.exported().unwrap();
    assert_eq!(exported.tensors.len(), 4, "a mask is not exported");
}

#[test]
fn a_pass_sees_what_a_gate_keeps_unless_it_was_given_a_mask() {
    let mut toy = toy();
    let attached = gated(&mut toy);
    let gate = &attached.gates[0];
    let mut pass = Pass::evaluation(Selection::one("one"));
    assert!(matches!(pass.mask(gate).unwrap(), Mask::All));
    gate.keep(&[true, false, true]).unwrap();
    assert!(matches!(pass.mask(gate).unwrap(), Mask::Live(slots) if slots == [0, 2]));
    let given = Tensor::new(&[0.0, 1.0, 0.0], &Device::Cpu).unwrap();
    let masks = Masks::from([(gate.id().clone(), given)]);
    let mut asked = Pass::evaluation(Selection::one("one")).with_masks(masks);
    match asked.mask(gate).unwrap() {
        Mask::Given(mask) => assert_eq!(mask.to_vec1::<f64>().unwrap(), [0.0, 1.0, 0.0]),
        other => panic!("{other:?}"),
    }
    assert!(matches!(asked.mask(&attached.gates[1]).unwrap(), Mask::All));
}

#[test]
fn revived_slots_are_drawn_as_declared_and_the_others_stay() {
    let mut toy = toy();
    let attached = gated(&mut toy);
    let gate = &attached.gates[0];
    let values =
        || -> Vec<Vec<Vec<f64>>> { gate.gated().map(|param| matrix(&param.value())).collect() };
    let before = values();
    gate.keep(&[false, false, true]).unwrap();
    let revivals = gate.revive(&[1], 7).unwrap();
    assert_eq!(gate.live().unwrap(), [false, true, true]);
    let found: Vec<_> = revivals
        .iter()
        .map(|revival| (revival.axis, revival.slots.clone()))
        .collect();
    assert_eq!(found, [(0, vec![1]), (1, vec![1])]);
    let after = values();
    let bound = 1.0 / 10f64.sqrt();
    for slot in 0..3 {
        // A has its slots in rows, B in columns.
        if slot == 1 {
            assert!(after[0][slot].iter().all(|a| a.abs() <= bound && *a != 0.0));
            assert!(after[1].iter().all(|row| row[slot] == 0.0));
        } else {
            assert_eq!(after[0][slot], before[0][slot]);
            assert!(
                after[1]
                    .iter()
                    .zip(&before[1])
                    .all(|(new, old)| new[slot] == old[slot])
            );
        }
    }
    gate.revive(&[1], 7).unwrap();
    assert_eq!(values(), after, "the same step draws the same values");
    gate.revive(&[1], 8).unwrap();
    assert_ne!(values(), after, "another step draws others");
}

#[test]
fn what_does_not_fit_a_gate_is_refused() {
    let mut toy = toy();
    let attached = gated(&mut toy);
    let gate = &attached.gates[0];
    assert_eq!(
        gate.keep(&[true; 2]).unwrap_err().to_string(),
        "a gate of 3 slots was given a mask of 2"
    );
    let before: Vec<_> = gate.gated().map(|param| matrix(&param.value())).collect();
    assert_eq!(
        gate.revive(&[0, 3], 1).unwrap_err().to_string(),
        "slot 3 of a gate with 3 slots"
    );
    let after: Vec<_> = gate.gated().map(|param| matrix(&param.value())).collect();
    assert_eq!(before, after);
}

#[test]
fn an_auxiliary_loss_is_a_mean_over_tokens_without_padding() {
    let mut toy = toy();
    let keys = json!({"r": 2, "balance": 3.0, "target_modules": "all-linear"});
    let config = parse(&InputDependent, keys).unwrap();
    let attached = attach(&mut toy, "one", &config, Start::Seed(3)).unwrap();
    for param in attached.trained() {
        randomise(&param, "routed");
    }
    let share = Share {
        token: 0.25,
        auxiliary: 2.0,
    };
    let rows: [&[usize]; 2] = [&[5], &[1, 2]];
    let sums = [5, 9].map(|length| {
        let batch = padded(6, &rows, length).unwrap();
        let mut pass = Pass::training_pass(Selection::one("one"), Key::new(1, Purpose::Dropout));
        let params = attached.trained();
        let swept = sweep(&toy, &batch, &mut pass, &params, share, Memory::Keep).unwrap();
        // A run in one piece adds the same losses, one a layer.
        let mut pass = Pass::training_pass(Selection::one("one"), Key::new(1, Purpose::Dropout));
        run(&toy, &batch, &Ask::Losses, None, &mut pass).unwrap();
        let losses = pass.take_losses();
        assert_eq!(losses.len(), 18);
        let sum: f64 = losses
            .iter()
            .map(|(_, loss)| loss.to_scalar::<f64>().unwrap())
            .sum();
        assert!((sum - swept.auxiliary).abs() < 1e-12);
        sum
    });
    assert!(
        sums[0] > 1e-3 && (sums[0] - sums[1]).abs() < 1e-12,
        "{sums:?}"
    );
}

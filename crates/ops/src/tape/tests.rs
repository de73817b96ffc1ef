//! What is remembered of recorded tensors, and for how long.

use super::{find, outputs};
use candle_core::{DType, Device, Tensor, TensorId};

/// Whether anything is remembered of a tensor, dead or alive.
fn known(id: TensorId) -> bool {
    outputs().contains_key(&id)
}

#[test]
fn an_entry_goes_when_its_tensor_does() -> crate::Result<()> {
    let numbers = Tensor::new(&[[1f32, -2.], [0.5, 3.]], &Device::Cpu)?;
    let x = crate::leaf(&numbers)?;
    let weight = numbers.narrow(0, 0, 1)?.flatten_all()?;
    let (sum, normed) = crate::add_rms_norm(&x, &x, &weight, 1e-5)?;
    let (sum_id, normed_id) = (sum.id(), normed.id());
    assert!(known(sum_id) && known(normed_id));
    assert!(find(&x).is_none() && !known(x.id()), "a leaf");
    drop(normed);
    assert!(known(sum_id) && !known(normed_id));
    // A view, or what another operation made of it, keeps it.
    let kept = crate::swiglu(&sum.reshape(4)?, &sum.reshape(4)?)?;
    let kept_id = kept.id();
    drop(sum);
    assert!(known(sum_id) && known(kept_id));
    let loss = crate::sum_all(&kept)?;
    let loss_id = loss.id();
    drop(kept);
    crate::backward(&loss, &[], &[&x])?;
    assert!(known(sum_id) && known(kept_id) && known(loss_id));
    drop(loss);
    assert!(!known(sum_id) && !known(kept_id) && !known(loss_id));
    Ok(())
}

#[test]
fn plain_results_are_not_remembered() -> crate::Result<()> {
    let x = Tensor::zeros((2, 3), DType::F64, &Device::Cpu)?;
    let sum = crate::add(&x, &x)?;
    assert!(!known(sum.id()));
    // Nor are those of a refused operation.
    let x = crate::leaf(&x)?;
    let before = crate::add(&x, &x)?;
    assert!(crate::add(&before, &before.narrow(1, 0, 2)?).is_err());
    assert!(known(before.id()));
    Ok(())
}

#[test]
fn what_is_not_read_is_not_kept() -> crate::Result<()> {
    let numbers = Tensor::new(&[[1f64, -2.], [0.5, 3.]], &Device::Cpu)?;
    let (x, w) = (crate::leaf(&numbers)?, crate::leaf(&numbers)?);
    let product = crate::linear(&x, &w, None)?;
    let sum = crate::add(&product, &crate::swiglu(&product, &x)?)?;
    // Both products are needed by what is multiplied with them, the sum by nothing.
    let whole = crate::add(&sum, &product)?;
    let (sum_id, product_id) = (sum.id(), product.id());
    drop((sum, product));
    // It is known where the gradient of the sum goes, and its numbers are gone: x, w, the product and the result are left.
    assert!(known(sum_id) && known(product_id));
    assert_eq!(crate::graph_bytes([&whole]), 4 * 4 * 8);
    let loss = crate::sum_all(&whole)?;
    let (_, grads) = crate::backward(&loss, &[], &[&x, &w])?;
    let composed = {
        let product = crate::composed::linear(&x, &w, None)?;
        let sum = (&product + crate::composed::swiglu(&product, &x)?)?;
        crate::composed::sum_all(&(sum + product)?)?
    };
    for (grad, leaf) in grads.iter().zip([&x, &w]) {
        let grad = grad.as_ref().expect("both are reached");
        let expected = crate::backward(&composed, &[], &[leaf])?.1.remove(0);
        let gap = (grad - expected.expect("both are reached"))?
            .abs()?
            .max_all()?;
        assert!(gap.to_scalar::<f64>()? < 1e-12);
    }
    Ok(())
}

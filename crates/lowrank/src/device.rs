//! Which device a model is put on.

use crate::base::Base;
use crate::{Error, Result};
use candle_core::Device;
use candle_core::utils::cuda_is_available;
use lowrank_train::Place;

/// The device that a run file or a flag names.
///
/// # Errors
/// If this program was built without it, or there is none.
pub fn device(place: Place) -> Result<Device> {
    match place {
        Place::Cpu => Ok(Device::Cpu),
        // True of a program that was built with CUDA, whatever the machine has.
        Place::Cuda if !cuda_is_available() => Err(Error::Usage(
            "this program was built without CUDA, so that the device \"cuda\" cannot be used; build it with \
             `cargo build --release --features cuda` (docs/gpu.md says how)"
                .into(),
        )),
        Place::Cuda => Device::new_cuda(0).map_err(|source| Error::NoGpu {
            what: source.to_string().lines().next().unwrap_or_default().to_owned(),
        }),
    }
}

impl Base {
    /// Moves the model's weights to a device, before adapters are attached. On a GPU weights that were held in fewer bits
    /// become f32.
    ///
    /// # Errors
    /// If adapters are attached, or the device has no room.
    pub fn place(&mut self, device: &Device) -> Result<()> {
        Ok(lowrank_adapter::place(self.model.as_mut(), device)?)
    }
}

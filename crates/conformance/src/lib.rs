//! The laws that every family of adapters must pass, and three families that exist only to prove the traits.
//!
//! A family enters with a table of configurations; a law that fails panics with the family, the configuration, the
//! law and the numbers.
//!
//! ```
//! use lowrank_conformance::{Law, check, families::Chained};
//! use serde_json::json;
//! check(&Chained, &[("plain", json!({"r": 3, "alpha": 4.5}))], &[Law::StartsAsBase, Law::SaveLoad]);
//! ```

pub mod families;
pub mod layers;
pub mod planted;
pub mod toy;

mod case;
mod compare;
mod law;
mod laws;
mod training;

pub use compare::tolerance;
pub use law::{ALL, Law, check, declaring};

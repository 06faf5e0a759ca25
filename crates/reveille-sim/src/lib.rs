//! Reveille's control loop and executor over a simulated world.
//!
//! What runs is production code: [`reveille::control`] with the decision core. What it works with is simulated: virtual
//! machines and local disks ([`vmm`]), the object store ([`shelf`]), the state database ([`database`]), gates, guests'
//! ports and clients ([`ports`]), and the clock. Everything happens in one thread, with all chance from one seed, so that
//! a seed that fails fails again. [`story`] says what goes wrong, [`truth`] what must hold whatever goes wrong.

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "a test of the whole; what is in it is told in the modules' heads")]

pub mod daemon;
pub mod database;
pub mod dice;
pub mod ports;
pub mod shelf;
pub mod story;
pub mod truth;
pub mod vmm;
pub mod world;

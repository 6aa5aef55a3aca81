//! Nothing: an empty library target, so that cargo tracks this crate as a build dependency.
#![no_std]

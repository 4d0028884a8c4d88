//! `--multifd`, `--compression` and `--uuid`: data channels, as the engine wants to hear of them.

use mig::{
    engine::{MultifdCompression, Parameters},
    transport::{Address, MigrationAddress},
};

use crate::{
    failure::{Failure, Outcome},
    flags::{Compression, MultifdFlags},
};

/// Sets the parameters that the flags name; answers whether data channels were asked for.
pub(crate) fn plan(
    flags: &MultifdFlags,
    address: &MigrationAddress,
    parameters: &mut Parameters,
) -> Outcome<bool> {
    let Some(channels) = flags.multifd else { return Ok(false) };
    if !matches!(address.address(), Address::Inet(_) | Address::Unix(_) | Address::Vsock(_)) {
        return Err(Failure::misuse(format!(
            "--multifd: {address} is one connection and cannot have others beside it; use tcp:, unix: or vsock:, or leave \
             --multifd out"
        )));
    }
    parameters.multifd_channels = channels;
    parameters.multifd_compression = match flags.compression {
        None | Some(Compression::None) => MultifdCompression::None,
        Some(Compression::Zlib) => MultifdCompression::Zlib,
        Some(Compression::Zstd) => MultifdCompression::Zstd,
    };
    Ok(true)
}

//! `--multifd`, `--channels` and what goes with them: data channels, as the engine wants to hear of them.

use mig::{
    engine::{AutoChannels, MultifdCompression, MultifdOptions, Parameters},
    transport::{Address, MigrationAddress},
};

use crate::{
    failure::{Failure, Outcome},
    flags::{Channels, Compression, MultifdFlags, Percent},
};

/// Sets the parameters that the flags name; answers whether data channels were asked for.
pub(crate) fn plan(
    flags: &MultifdFlags,
    address: &MigrationAddress,
    parameters: &mut Parameters,
) -> Outcome<bool> {
    let Some(channels) = flags.multifd else { return Ok(false) };
    if !can(address) {
        return Err(Failure::misuse(format!(
            "--multifd: {address} is one connection and cannot have others beside it; use tcp:, unix: or vsock:, or leave \
             --multifd out"
        )));
    }
    if channels == Channels::Count(0) {
        return Err(Failure::misuse(
            "--multifd 0: at least one channel must carry the pages; leave --multifd out for a single stream",
        ));
    }
    set(channels, flags.compression, parameters);
    Ok(true)
}

/// The same for who receives.
pub(crate) fn expect(
    flags: &MultifdFlags,
    address: &MigrationAddress,
) -> Outcome<Option<MultifdOptions>> {
    let mut parameters = Parameters::default();
    if !plan(flags, address, &mut parameters)? {
        return Ok(None);
    }
    let options = match parameters.multifd_auto {
        Some(_) => MultifdOptions::any_number(),
        None => MultifdOptions::new(parameters.multifd_channels),
    };
    Ok(Some(options.compression(parameters.multifd_compression)))
}

/// Whether a transport can have data channels.
pub(crate) fn can(address: &MigrationAddress) -> bool {
    matches!(address.address(), Address::Inet(_) | Address::Unix(_) | Address::Vsock(_))
}

/// Sets the number of data channels and how they are packed.
pub(crate) fn set(
    channels: Channels,
    compression: Option<Compression>,
    parameters: &mut Parameters,
) {
    match channels {
        Channels::Count(count) => parameters.multifd_channels = count,
        Channels::Auto => parameters.multifd_auto = Some(AutoChannels::default()),
    }
    parameters.multifd_compression = match compression {
        None | Some(Compression::None) => MultifdCompression::None,
        Some(Compression::Zlib) => MultifdCompression::Zlib,
        Some(Compression::Zstd) => MultifdCompression::Zstd,
    };
}

/// Caps what a number that is found may cost.
pub(crate) fn limit(budget: Option<Percent>, parameters: &mut Parameters) -> Outcome {
    let Some(Percent(percent)) = budget else { return Ok(()) };
    let Some(auto) = &mut parameters.multifd_auto else {
        return Err(Failure::misuse(
            "--cpu-budget caps a number of channels that is found while it runs: ask for auto, or leave it out",
        ));
    };
    auto.cpu_budget = Some(percent);
    Ok(())
}

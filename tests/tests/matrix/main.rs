//! The matrix: real QEMU, out through `mig recv --save` and in through `mig send`, over everything both speak.
//!
//! ```text
//!   source QEMU ──link──▶ mig recv --save F        all memory right, still counting,
//!                         mig send F ──link──▶ fresh QEMU     completed at both real ends
//!                                  F ──exec:cat, file:──▶ third QEMU, without us
//! ```
//! One test a cell: {installed, unpacked QEMU} × {pc, q35} × transport × {plain, return path}. Where the transport
//! has no way back, the cell with the return path demands that both ends refuse and that the guest stays where it is.
//! Beside the transports: streams with deltas and compressed pages, of QEMU and into it, at the library's live ends.
//! Data channels: a row for each way of using them, and what each end says when they do not agree about them.
//! Each cell tells its result for docs/interop.md.

mod cell;
mod encoded;
mod heartbeat;
mod link;
mod live;
mod misfits;
mod multifd;
mod piped;
mod refused;
mod secured;
mod tls;

use mig_tests::guard::guarded;
use mig_tests::qemu::Release;

use encoded::Encoding;
use link::Transport;

macro_rules! matrix {
    ($($module:ident: $release:ident $machine:literal;)*) => { $(
        mod $module {
            use super::*;

            rows! { $release $machine;
                tcp_v4: TcpV4 works works;
                tcp_v6: TcpV6 works works;
                unix: Unix works works;
                exec_by_qemu: ExecByQemu works works;
                exec_by_both: ExecByBoth works works;
                fd_socket: FdSocket works works;
                fd_pipe: FdPipe works refused;
                file: File works refused;
            }

            #[test]
            fn deltas_from_qemu() {
                guarded(|| encoded::from_qemu(Release::$release, $machine, Encoding::Xbzrle));
            }

            #[test]
            fn compressed_pages_from_qemu() {
                guarded(|| encoded::from_qemu(Release::$release, $machine, Encoding::Compress));
            }

            #[test]
            fn deltas_into_qemu() {
                guarded(|| encoded::into_qemu(Release::$release, $machine));
            }

            wishes! { $release $machine;
                multifd_plain: PLAIN;
                multifd_zlib: ZLIB;
                multifd_zstd: ZSTD;
                multifd_old_machine: OLD_MACHINE;
                multifd_legacy_zero_pages: LEGACY_ZERO_PAGES;
            }

            #[test]
            fn multifd_of_a_plain_file() {
                guarded(|| multifd::plain_file(Release::$release, $machine));
            }

            #[test]
            fn straight_through_plain() {
                guarded(|| piped::straight_through(Release::$release, $machine, false));
            }

            #[test]
            fn straight_through_return_path() {
                guarded(|| piped::straight_through(Release::$release, $machine, true));
            }
        }
    )* };
}

macro_rules! wishes {
    ($release:ident $machine:literal; $($row:ident: $wish:ident;)*) => { $(
        #[test]
        fn $row() {
            guarded(|| multifd::works(Release::$release, $machine, multifd::$wish));
        }
    )* };
}

macro_rules! rows {
    ($release:ident $machine:literal; $($row:ident: $transport:ident $plain:ident $return_path:ident;)*) => { $(
        mod $row {
            use super::*;

            #[test]
            fn plain() {
                guarded(|| run!($plain)(Release::$release, $machine, Transport::$transport, false));
            }

            #[test]
            fn return_path() {
                guarded(|| {
                    run!($return_path)(Release::$release, $machine, Transport::$transport, true)
                });
            }
        }
    )* };
}

macro_rules! run {
    (works) => {
        cell::works
    };
    (refused) => {
        refused::return_path
    };
}

matrix! {
    installed_pc: Installed "pc";
    installed_q35: Installed "q35";
    unpacked_pc: Unpacked "pc";
    unpacked_q35: Unpacked "q35";
}

macro_rules! misfits {
    ($($module:ident: $release:ident;)*) => { $(
        mod $module {
            use super::*;

            cases! { $release;
                more_channels_than_expected,
                fewer_channels_than_expected,
                other_compression,
                any_number_from_qemu,
                single_stream_where_channels_are_expected,
                channels_where_a_single_stream_is_expected,
                more_channels_than_qemu_expects,
                fewer_channels_than_qemu_expects,
                another_compression_than_qemu_expects,
                another_uuid_than_qemu_expects,
                channels_where_qemu_expects_a_single_stream,
                single_stream_where_qemu_expects_channels,
            }

            #[test]
            fn verified_and_discarded() {
                guarded(|| multifd::verified_and_discarded(Release::$release, "pc"));
            }
        }
    )* };
}

macro_rules! heartbeats {
    ($($module:ident: $release:ident;)*) => { $(
        mod $module {
            use super::*;

            #[test]
            fn a_long_pause() {
                guarded(|| heartbeat::a_long_pause(Release::$release));
            }

            #[test]
            fn a_stopped_destination() {
                guarded(|| heartbeat::a_stopped_destination(Release::$release));
            }
        }
    )* };
}

heartbeats! {
    installed_heartbeat: Installed;
    unpacked_heartbeat: Unpacked;
}

macro_rules! cases {
    ($release:ident; $($case:ident,)*) => { $(
        #[test]
        fn $case() {
            guarded(|| misfits::$case(Release::$release));
        }
    )* };
}

misfits! {
    installed_multifd: Installed;
    unpacked_multifd: Unpacked;
}

macro_rules! with_tls {
    ($($module:ident: $release:ident;)*) => { $(
        mod $module {
            use super::*;
            use secured::Security;

            secured_rows! { $release;
                tcp: TcpV4 false X509;
                tcp_return_path: TcpV4 true X509;
                unix: Unix true X509;
                exec_by_qemu: ExecByQemu false X509;
                fd_socket: FdSocket true X509;
            }

            wishes! { $release "pc";
                multifd: TLS;
                multifd_zstd: TLS_ZSTD;
            }

            #[test]
            fn live_into_qemu() {
                guarded(|| tls::live::into_qemu(Release::$release));
            }

            #[test]
            fn live_from_qemu() {
                guarded(|| tls::live::from_qemu(Release::$release));
            }

            #[test]
            fn changing_keys() {
                guarded(|| tls::live::changing_keys(Release::$release));
            }

            #[test]
            fn strangers_by_distinguished_name() {
                guarded(|| tls::refused::by_recv(Release::$release, "dn:O=mig tests,CN=source-1"));
            }

            #[test]
            fn strangers_by_alternative_name() {
                guarded(|| tls::refused::by_recv(Release::$release, "san:dns:source-1.example"));
            }

            #[test]
            fn strangers_at_qemu() {
                guarded(|| tls::refused::by_qemu(Release::$release));
            }

            #[test]
            fn pre_shared_key() {
                guarded(|| tls::pre_shared::works(Release::$release));
            }

            #[test]
            fn another_pre_shared_key() {
                guarded(|| tls::pre_shared::refused(Release::$release));
            }

            #[test]
            fn into_a_mig_without() {
                guarded(|| tls::refused::where_recv_has_none(Release::$release));
            }

            #[test]
            fn into_a_qemu_without() {
                guarded(|| tls::refused::where_qemu_has_none(Release::$release));
            }

            #[test]
            fn a_certificate_without_alternative_names() {
                guarded(|| tls::refused::without_alternative_names(Release::$release));
            }
        }
    )* };
}

macro_rules! secured_rows {
    ($release:ident; $($row:ident: $transport:ident $return_path:literal $security:ident;)*) => { $(
        #[test]
        fn $row() {
            guarded(|| {
                let transport = Transport::$transport;
                let security = Security::$security;
                cell::secured(Release::$release, "pc", transport, $return_path, security);
            });
        }
    )* };
}

with_tls! {
    installed_tls: Installed;
    unpacked_tls: Unpacked;
}

mod tls_between_qemus {
    use super::*;
    use secured::Security;

    #[test]
    fn older_to_newer() {
        guarded(|| {
            tls::between_qemus::works(Release::Installed, Release::Unpacked, Security::X509);
        });
    }

    #[test]
    fn newer_to_older() {
        guarded(|| {
            tls::between_qemus::works(Release::Unpacked, Release::Installed, Security::X509);
        });
    }

    #[test]
    fn older_to_newer_with_a_key() {
        guarded(|| tls::between_qemus::works(Release::Installed, Release::Unpacked, Security::Psk));
    }
}

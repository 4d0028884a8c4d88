//! The checked-in bindings and the rdma-sys crate agree in size, alignment and offset of every structure used.
//!
//! rdma-sys is generated from this machine's headers when it is built, so this compares ours with those as well. It needs
//! libibverbs-dev, librdmacm-dev, pkg-config and libclang 14 or 15 (16 and newer panic in its build script):
//!
//! ```text
//! cargo test -p mig-transport-rdma --features rdma-sys
//! ```

use std::mem::{align_of, offset_of, size_of};

use super::bindings as ours;

macro_rules! same {
    ($($structure:ident { $($field:ident),* $(,)? })*) => {
        /// Name, ours, theirs; sizes, alignments, then offsets.
        fn facts() -> Vec<(&'static str, usize, usize)> {
            vec![$(
                (concat!("size of ", stringify!($structure)), size_of::<ours::$structure>(), size_of::<rdma_sys::$structure>()),
                (concat!("alignment of ", stringify!($structure)), align_of::<ours::$structure>(), align_of::<rdma_sys::$structure>()),
                $((
                    concat!(stringify!($structure), ".", stringify!($field)),
                    offset_of!(ours::$structure, $field),
                    offset_of!(rdma_sys::$structure, $field),
                ),)*
            )*]
        }
    };
}

same! {
    ibv_gid { raw, global }
    ibv_device { name, dev_name, dev_path, ibdev_path, node_type, transport_type }
    ibv_device_attr {
        fw_ver, max_mr_size, max_qp, max_qp_wr, max_sge, max_cq, max_cqe, max_mr, phys_port_cnt,
    }
    ibv_odp_caps { general_caps, per_transport_caps }
    ibv_device_attr_ex { orig_attr, comp_mask, odp_caps, phys_port_cnt_ex }
    ibv_port_attr {
        state, max_mtu, active_mtu, gid_tbl_len, max_msg_sz, phys_state, link_layer, flags,
        port_cap_flags2,
    }
    ibv_context_ops { _compat_query_device, poll_cq, req_notify_cq, post_send, post_recv }
    ibv_context { device, ops, cmd_fd, async_fd, num_comp_vectors, mutex, abi_compat }
    verbs_context { query_port, advise_mr, query_device_ex, sz, context }
    ibv_pd { context, handle }
    ibv_mr { context, pd, addr, length, handle, lkey, rkey }
    ibv_comp_channel { context, fd, refcnt }
    ibv_cq { context, channel, cq_context, handle, cqe }
    ibv_wc { wr_id, status, opcode, vendor_err, byte_len, qp_num, src_qp, wc_flags, dlid_path_bits }
    ibv_sge { addr, length, lkey }
    ibv_send_wr { wr_id, next, sg_list, num_sge, opcode, send_flags, wr }
    ibv_recv_wr { wr_id, next, sg_list, num_sge }
    ibv_qp { context, qp_context, pd, send_cq, recv_cq, handle, qp_num, state, qp_type }
    ibv_qp_cap { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data }
    ibv_qp_init_attr { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all }
    ibv_qp_attr { qp_state, cur_qp_state, path_mtu, port_num, timeout, retry_cnt, rnr_retry }
    rdma_event_channel { fd }
    rdma_addr { addr }
    rdma_route { addr, path_rec, num_paths }
    rdma_cm_id { verbs, channel, context, qp, route, ps, port_num, event, srq, pd, qp_type }
    rdma_conn_param {
        private_data, private_data_len, responder_resources, initiator_depth, flow_control,
        retry_count, rnr_retry_count, srq, qp_num,
    }
    rdma_cm_event { id, listen_id, event, status, param }
}

#[test]
fn both_bindings_lay_every_structure_out_alike() {
    let differing: Vec<_> =
        facts().into_iter().filter(|(_, ours, theirs)| ours != theirs).collect();
    assert!(differing.is_empty(), "(what, ours, rdma-sys): {differing:?}");
}

/// The union arms have other names there, so their places are compared by hand.
#[test]
fn both_bindings_agree_inside_unions() {
    use ours::ibv_send_wr__bindgen_ty_2__bindgen_ty_1 as rdma;
    // The unions' own places are compared above; an arm begins where its union does.
    assert_eq!(offset_of!(rdma, remote_addr), offset_of!(rdma_sys::rdma_t, remote_addr));
    assert_eq!(offset_of!(rdma, rkey), offset_of!(rdma_sys::rdma_t, rkey));
    assert_eq!(
        offset_of!(ours::rdma_addr, __bindgen_anon_2),
        offset_of!(rdma_sys::rdma_addr, dst_addr_union)
    );
    // What `id` relies on.
    assert_eq!(offset_of!(ours::rdma_addr, __bindgen_anon_1), 0);
    assert_eq!(offset_of!(ours::rdma_addr, __bindgen_anon_2), size_of::<libc::sockaddr_storage>());
}

#[test]
fn both_bindings_number_alike() {
    macro_rules! equal {
        ($($module:ident::$name:ident),* $(,)?) => {
            $(assert_eq!(ours::$module::$name as i64, rdma_sys::$module::$name as i64, stringify!($name));)*
        };
    }
    equal! {
        ibv_wc_status::IBV_WC_RNR_RETRY_EXC_ERR,
        ibv_wc_status::IBV_WC_GENERAL_ERR,
        ibv_wr_opcode::IBV_WR_RDMA_WRITE,
        ibv_wr_opcode::IBV_WR_SEND,
        ibv_qp_type::IBV_QPT_RC,
        ibv_qp_state::IBV_QPS_ERR,
        ibv_port_state::IBV_PORT_ACTIVE,
        ibv_mtu::IBV_MTU_4096,
        rdma_cm_event_type::RDMA_CM_EVENT_ESTABLISHED,
        rdma_cm_event_type::RDMA_CM_EVENT_TIMEWAIT_EXIT,
        rdma_port_space::RDMA_PS_TCP,
    }
    macro_rules! equal_flags {
        ($($module:ident::$name:ident),* $(,)?) => {
            $(assert_eq!(ours::$module::$name.0, rdma_sys::$module::$name.0, stringify!($name));)*
        };
    }
    equal_flags! {
        ibv_access_flags::IBV_ACCESS_LOCAL_WRITE,
        ibv_access_flags::IBV_ACCESS_REMOTE_WRITE,
        ibv_send_flags::IBV_SEND_SIGNALED,
        ibv_qp_attr_mask::IBV_QP_STATE,
        ibv_odp_general_caps::IBV_ODP_SUPPORT,
        ibv_odp_transport_cap_bits::IBV_ODP_SUPPORT_WRITE,
    }
}

//! A guest that does nothing.

use mig_engine::{DeviceSection, Guest, GuestError};
use mig_proto::globalstate::RunState;

pub(crate) struct IdleGuest;

impl Guest for IdleGuest {
    fn machine_type(&self) -> String {
        "mig-bench-1".into()
    }

    fn stop(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, GuestError> {
        Ok(vec![DeviceSection {
            idstr: "idle-cpu".into(),
            instance_id: 0,
            version_id: 1,
            payload: (0..=u8::MAX).collect(),
        }])
    }

    fn load_device(&mut self, _section: &DeviceSection) -> Result<(), GuestError> {
        Ok(())
    }

    fn start(&mut self, _state: RunState) -> Result<(), GuestError> {
        Ok(())
    }
}

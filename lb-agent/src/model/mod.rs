//! Plain types of what the cluster wants: no Kubernetes types, no map types.
//!
//! **Invariants:** values are already parsed (addresses are [`std::net::IpAddr`], protocols an enum), and nothing here
//! does I/O. Read [`ServiceSpec`] and [`SliceSpec`] first; [`settings::Settings`] is how the operator wants it served.

mod object;
pub mod settings;

pub use object::{
    EndpointSpec, Family, Forwarding, Ignored, Key, NodeSpec, Object, ObjectName, Policy, PortId, Protocol,
    ServiceCidrSpec, ServiceKind, ServicePort, ServiceSpec, SlicePort, SliceSpec, Trigger,
};

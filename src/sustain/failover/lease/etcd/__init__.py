"""A lease in etcd: `etcd://host:2379[,host…][/name]`. Used through `open_lease`."""

from sustain.failover.lease.etcd.client import Client
from sustain.failover.lease.etcd.lease import EtcdLease
from sustain.failover.lease.etcd.url import EtcdUrl, parse_etcd_url

__all__ = ["Client", "EtcdLease", "EtcdUrl", "parse_etcd_url"]

#!/bin/sh
# A real S3 server, with users: Ceph's monitor, one store and its gateway, in a container of their
# own. FOLDER holds its data; each profile of the file CREDENTIALS is a user; PORT is the gateway's.
set -eu
export CEPH_CONF=/tmp/ceph.conf
store=00000000-0000-4000-8000-000000000001
# They trust each other by loopback, and say so: without `crc` the gateway never reaches a monitor.
cat >$CEPH_CONF <<END
[global]
fsid = 00000000-0000-4000-8000-000000000000
osd uuid = $store
mon host = v2:127.0.0.1:3300
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr1 = false
auth supported = none
ms mon client mode = crc
mon data = $FOLDER/mon
osd data = $FOLDER/osd
run dir = /tmp
log file =
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default pg num = 1
mon allow pool size one = true
bluestore block size = 10737418240
bluestore cache autotune = false
bluestore cache size = 33554432
bluestore rocksdb options = compression=kNoCompression,write_buffer_size=8388608
rgw frontends = beast endpoint=0.0.0.0:$PORT
rgw thread pool size = 16
END
first() { test ! -e "$FOLDER/made"; }
if first; then
  rm -rf "$FOLDER/mon" "$FOLDER/osd"
  mkdir "$FOLDER/mon" "$FOLDER/osd"
  ceph-mon -i a --mkfs
fi
ceph-mon -i a -f &
if first; then
  ceph osd new "$store"
  ceph-osd -i 0 --mkfs
fi
ceph-osd -i 0 -f &
if first; then
  awk -F ' *= *' '/^\[/ {gsub(/[][ ]/, ""); user = $0} $1 == "aws_access_key_id" {key = $2}
    $1 == "aws_secret_access_key" {print user, key, $2}' "$CREDENTIALS" |
    while read -r user key secret; do
      radosgw-admin user create --uid "$user" --display-name "$user" --access-key "$key" \
        --secret "$secret" </dev/null >/dev/null
    done
  touch "$FOLDER/made"
fi
exec radosgw -f -n client.rgw

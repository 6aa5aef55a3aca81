#!/bin/busybox sh
# Process 1 of a guest that runs another kernel. Says what it found in lines that begin with "lb-", and turns itself off.
#
#   client 192.0.2.100 (a namespace) --- eth0 192.0.2.11 (this node) 10.77.1.1 --- 10.77.1.10 pod (a namespace)
b=/bin/busybox
export PATH=/bin
$b --install -s /bin 2>/dev/null
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b mount -t tmpfs run /run
$b mount -t bpf bpf /sys/fs/bpf
$b mount -t cgroup2 cgroup /sys/fs/cgroup
echo "lb-up $($b uname -r)"
for module in /modules/*.ko; do $b insmod "$module"; done

echo "lb-check $(lb-agent check --json 2>/tmp/check)"
echo "lb-said $($b cat /tmp/check)"

ip link set lo up
for name in client pod; do
    ip netns add $name
    ip -n $name link set lo up
done
ip link add eth0 type veth peer name out
ip link set out netns client name eth0
ip link add pod0 type veth peer name out
ip link set out netns pod name eth0
net() { # namespace, device, address, IPv6 address
    ip $1 address add $3 dev $2
    ip $1 address add $4 dev $2 nodad
    ip $1 link set $2 up
}
net "" eth0 192.0.2.11/24 2001:db8:1::11/64
net "-n client" eth0 192.0.2.100/24 2001:db8:1::100/64
net "" pod0 10.77.1.1/24 fd77::1/64
net "-n pod" eth0 10.77.1.10/24 fd77::10/64
ip route add default via 192.0.2.100
ip -6 route add default via 2001:db8:1::100
ip -n pod route add default via 10.77.1.1
ip -n pod -6 route add default via fd77::1
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
ip netns exec pod $b httpd -p '[::]:8080' -h /www

lb-agent run --node-name guest --manifests /manifests --xdp eth0 --max-flows 8192 >/tmp/log 2>&1 &
agent=$!
waited=0
until $b wget -q -T 2 -O /dev/null http://127.0.0.1:10256/healthz 2>/dev/null; do
    waited=$((waited + 1))
    if [ $waited -gt 120 ] || ! kill -0 $agent 2>/dev/null; then break; fi
    $b sleep 1
done

try() { # name, command...: the command is to print "lb"
    name=$1
    shift
    answer=$("$@" 2>&1)
    if [ "$answer" = lb ]; then echo "lb-pass $name"; else echo "lb-fail $name: $answer"; fi
}
get="$b wget -q -T 10 -O -"
try "node to ClusterIP, IPv4, by the socket programs" $get http://10.96.0.10/
try "node to ClusterIP, IPv6, by the socket programs" $get http://[fd96::10]/
try "client to NodePort, IPv4, by the TC programs" ip netns exec client $get http://192.0.2.11:30080/
try "client to NodePort, IPv6, by the TC programs" ip netns exec client $get http://[2001:db8:1::11]:30080/
has_xdp() { case "$(ip link show eth0)" in *xdp*) echo lb ;; *) ip link show eth0 ;; esac; }
try "XDP on a veth in native mode" has_xdp
stopped() { kill $agent && wait $agent; $get http://10.96.0.10/; }
try "the data path goes on without the agent" stopped
gone() { lb-agent cleanup && [ -z "$(ls /sys/fs/bpf)" ] && echo lb; }
try "cleanup leaves nothing" gone
while read -r line; do echo "lb-log $line"; done < /tmp/log
echo "lb-done"
$b poweroff -f

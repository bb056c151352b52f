package httplimit

import (
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// ClientIP finds out which address requests come from.
type ClientIP struct {
	// TrustedProxies are the addresses of one's own proxies. Where a request comes from one of them, X-Forwarded-For is
	// read, from the right, past further ones of them: what stands left of the first other address is hearsay. Defaults
	// to none: the header is ignored.
	TrustedProxies []netip.Prefix
	// IPv6Bits is how much of an IPv6 address counts, for a subscriber has as many addresses as it likes in a network of
	// its own: between 1 and 128. Defaults to 64.
	IPv6Bits int
}

// IPKey is the Key of a [ClientIP] with these proxies, which limits requests per IPv4 address or IPv6 network of 64 bits.
func IPKey(trustedProxies ...netip.Prefix) func(*http.Request) (string, error) {
	return ClientIP{TrustedProxies: trustedProxies}.Key
}

var errNoAddress = errors.New("the request has no IP address")

// Key returns the address, without a port or zone, or the network that it is in. It is an error, and thus 400 by default,
// if RemoteAddr is none, as with Unix sockets.
func (c ClientIP) Key(r *http.Request) (string, error) {
	addr, ok := parseAddr(r.RemoteAddr)
	if !ok {
		return "", errNoAddress
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		if !c.isTrusted(addr) {
			break
		}
		next, ok := parseAddr(strings.TrimSpace(hop))
		if !ok { // a proxy of ours that says nothing better is all that is known
			break
		}
		addr = next
	}
	bits := c.IPv6Bits
	if bits <= 0 || bits > 128 {
		bits = 64
	}
	if addr.Is4() || bits == 128 {
		return addr.String(), nil
	}
	network, err := addr.Prefix(bits)
	return network.String(), err
}

func (c ClientIP) isTrusted(addr netip.Addr) bool {
	return slices.ContainsFunc(c.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// parseAddr reads an address with or without a port, brackets and zone.
func parseAddr(s string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	if err != nil {
		withPort, err := netip.ParseAddrPort(s)
		if err != nil {
			return netip.Addr{}, false
		}
		addr = withPort.Addr()
	}
	return addr.Unmap().WithZone(""), true
}

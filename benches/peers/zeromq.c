/* ZeroMQ as a subject: two PAIR sockets, blocking calls, which is how it is used; its own thread
 * of each side shares that side's CPU. Over ipc:// (a Unix socket) or tcp://. */
#include <string.h>
#include <stdio.h>
#include <stdlib.h>
#include <zmq.h>

#include "pair.h"

struct peer {
    void *socket;
    char *buffer;
};

static void peer_send(struct peer *peer, size_t bytes)
{
    if (zmq_send(peer->socket, peer->buffer, bytes, 0) != (int)bytes)
        fail("cannot send: %s", zmq_strerror(zmq_errno()));
}

static void peer_receive(struct peer *peer, size_t bytes)
{
    int got = zmq_recv(peer->socket, peer->buffer, PAIR_BYTES_MAX, 0);
    if (got < 0)
        fail("cannot receive: %s", zmq_strerror(zmq_errno()));
    if (got != (int)bytes)
        fail("a message of %d bytes came, and not of %zu", got, bytes);
}

static void ping(void *self, int side, size_t bytes, long count)
{
    for (long i = 0; i < count; i++) {
        if (side == 0)
            peer_send(self, bytes);
        peer_receive(self, bytes);
        if (side == 1)
            peer_send(self, bytes);
    }
}

static void stream(void *self, int side, size_t bytes, long count, long window)
{
    (void)window; /* The socket has its own, set below. */
    for (long i = 0; i < count; i++) {
        if (side == 0)
            peer_send(self, bytes);
        else
            peer_receive(self, bytes);
    }
    if (side == 0)
        peer_receive(self, 1);
    else
        peer_send(self, 1);
}

static void option_set(void *socket, int option, int value)
{
    if (zmq_setsockopt(socket, option, &value, sizeof value) != 0)
        fail("cannot set an option: %s", zmq_strerror(zmq_errno()));
}

int main(int argc, char **argv)
{
    int side, major, minor, patch;
    struct pair *pair = pair_open(argc, argv, &side);
    struct peer peer;
    void *context = zmq_ctx_new();
    peer.socket = zmq_socket(context, ZMQ_PAIR);
    peer.buffer = aligned_alloc(4096, PAIR_BYTES_MAX);
    memset(peer.buffer, 1, PAIR_BYTES_MAX);
    /* Messages, whatever their size: its default of 1,000 would be gigabytes of the largest. */
    option_set(peer.socket, ZMQ_SNDHWM, 64);
    option_set(peer.socket, ZMQ_RCVHWM, 64);
    const char *address = getenv("PEERS_ZEROMQ");
    if (!address)
        fail("PEERS_ZEROMQ is to name an address");
    if ((side == 1 ? zmq_bind : zmq_connect)(peer.socket, address) != 0)
        fail("cannot use %s: %s", address, zmq_strerror(zmq_errno()));
    zmq_version(&major, &minor, &patch);
    if (side == 0)
        printf("version %d.%d.%d\n", major, minor, patch);
    pair_run(pair, &(struct subject){&peer, ping, stream});
    zmq_close(peer.socket);
    zmq_ctx_term(context);
    return 0;
}

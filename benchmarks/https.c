/* https: puts load on a proxy that looks into TLS, and measures what comes back.
 *
 *   https keep PORT WAY ORIGIN AUTHORITY CONNECTIONS SECONDS PATH        GET again and again on each connection
 *   https new PORT WAY ORIGIN AUTHORITY CONNECTIONS SECONDS PATH         a new connection for each GET, to one host
 *   https hosts PORT WAY ORIGIN AUTHORITY CONNECTIONS SECONDS PATH FIRST the same, each to another host, from hFIRST on
 *   https h2 PORT WAY ORIGIN AUTHORITY CONNECTIONS SECONDS PATH          HTTP/2, 16 streams at a time on each connection
 *
 * PORT is the proxy's, on 127.0.0.1; ORIGIN is the port of the origin there. WAY is how the proxy is asked: `socks5` for
 * the host's name, `address` for 127.0.0.1 by SOCKS5, `connect` for the name by CONNECT of HTTP, `straight` not at all.
 * The name in the SNI is that of the host, origin.tabi.bench, or h0.tabi.bench, h1.tabi.bench and so on. AUTHORITY is a file in PEM: the
 * one authority that certificates must be signed by, so that everything that is counted was looked into.
 *
 * A thread for each connection, which blocks. The GET that is under way when SECONDS are over is waited for, so that 0
 * seconds are one GET on each connection.
 *
 * Prints what load.c prints, with `octets`, which are those of content.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/ssl.h>

enum {
    CHUNK = 256 * 1024,      /* octets of one read of content */
    HEAD = 8192,             /* octets of the longest head of an answer */
    STREAMS = 16,            /* of each connection of HTTP/2 */
    FRAME = 16384,           /* octets of the longest frame, without its head */
    FRAME_HEAD = 9,          /* octets before the content of a frame */
    STUCK_SECONDS = 15,      /* without an octet: the proxy has failed */
    MAX_CONNECTIONS = 256,   /* threads */
    MAX_SAMPLES = 1 << 23,   /* answers of one run */
};

enum { DATA, HEADERS, RST_STREAM = 3, SETTINGS, PING = 6, GOAWAY };
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4 };

static const char *mode, *way, *path;
static int proxy_port, origin_port;
static double deadline;
static SSL_CTX *context;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all below */
static float samples[MAX_SAMPLES];                       /* seconds of each, `done` of them */
static long done, connections, next_host;
static double octets;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Ends the run; whoever comes first says why. Both texts have nothing that JSON would have to escape. */
__attribute__((noreturn)) static void fail(const char *text, const char *more)
{
    pthread_mutex_lock(&lock);
    printf("{\"error\": \"%s%s\", \"after\": %ld}\n", text, more, done);
    fflush(stdout);
    _exit(1);
}

static void count(double began, double size)
{
    pthread_mutex_lock(&lock);
    if (done == MAX_SAMPLES) {
        pthread_mutex_unlock(&lock);
        fail("too many answers", "");
    }
    samples[done++] = (float)(now() - began);
    octets += size;
    pthread_mutex_unlock(&lock);
}

/* ---- a connection: TCP, the proxy's protocol, TLS ---- */

static void receive_all(int fd, unsigned char *buffer, size_t length)
{
    for (ssize_t got; length; buffer += got, length -= (size_t)got)
        if ((got = recv(fd, buffer, length, 0)) <= 0)
            fail("the proxy closed before it had connected", "");
}

static void ask_socks5(int fd, const char *host)
{
    unsigned char request[300] = {5, 1, 0, 1, 127, 0, 0, 1}, reply[10];
    size_t length = 8;
    if (strcmp(way, "address")) {
        length = 5 + strlen(host);
        request[3] = 3;
        request[4] = (unsigned char)strlen(host);
        memcpy(request + 5, host, strlen(host));
    }
    request[length++] = (unsigned char)(origin_port >> 8);
    request[length++] = (unsigned char)origin_port;
    send(fd, "\x05\x01\x00", 3, MSG_NOSIGNAL);
    receive_all(fd, reply, 2);
    send(fd, request, length, MSG_NOSIGNAL);
    receive_all(fd, reply, sizeof reply);
    if (reply[1])
        fail("the proxy refused a request of SOCKS5", "");
}

static void ask_connect(int fd, const char *host)
{
    char head[HEAD];
    int size = snprintf(head, sizeof head, "CONNECT %s:%d HTTP/1.1\r\nHost: %s:%d\r\n\r\n", host, origin_port, host,
        origin_port);
    send(fd, head, (size_t)size, MSG_NOSIGNAL);
    for (size = 0; size < 4 || memcmp(head + size - 4, "\r\n\r\n", 4); size++) {
        if (size == HEAD)
            fail("the answer to CONNECT has no end", "");
        receive_all(fd, (unsigned char *)head + size, 1); /* what is behind it belongs to TLS */
    }
    if (size < 12 || memcmp(head + 8, " 200", 4))
        fail("the proxy refused a CONNECT", "");
}

static SSL *open_tls(const char *host)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)proxy_port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        fail("connect: ", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){STUCK_SECONDS, 0}, sizeof(struct timeval));
    if (!strcmp(way, "connect"))
        ask_connect(fd, host);
    else if (strcmp(way, "straight"))
        ask_socks5(fd, host);
    SSL *tls = SSL_new(context);
    if (!tls || !SSL_set_fd(tls, fd) || !SSL_set_tlsext_host_name(tls, host) || !SSL_set1_host(tls, host))
        fail("TLS cannot begin", "");
    if (SSL_connect(tls) != 1) {
        long verdict = SSL_get_verify_result(tls);
        const char *reason = ERR_reason_error_string(ERR_peek_error());
        fail("TLS: ", verdict ? X509_verify_cert_error_string(verdict) : reason ? reason : "closed");
    }
    pthread_mutex_lock(&lock);
    connections++;
    pthread_mutex_unlock(&lock);
    return tls;
}

static void close_tls(SSL *tls)
{
    int fd = SSL_get_fd(tls);
    SSL_shutdown(tls);
    SSL_free(tls);
    close(fd);
}

static void write_all(SSL *tls, const void *data, size_t length)
{
    if (length && SSL_write(tls, data, (int)length) != (int)length)
        fail("the proxy closed before it was asked", "");
}

static size_t read_some(SSL *tls, void *data, size_t length)
{
    int got = SSL_read(tls, data, (int)length);
    if (got <= 0)
        fail("the proxy closed within an answer, or sent nothing more", "");
    return (size_t)got;
}

/* ---- HTTP/1.1 ---- */

/* `began`: when it was begun, with all that belongs to it. */
static void get(SSL *tls, const char *host, char *buffer, double began)
{
    double content, left;
    size_t length = 0;
    char *end = NULL, *field;
    int size = snprintf(buffer, CHUNK, "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUser-Agent: https\r\nAccept: */*\r\n\r\n", path,
        host, origin_port);
    write_all(tls, buffer, (size_t)size);
    while (!end) {
        if (length >= HEAD)
            fail("the head of an answer has no end", "");
        length += read_some(tls, buffer + length, CHUNK - 1 - length);
        buffer[length] = 0;
        end = memmem(buffer, length, "\r\n\r\n", 4);
    }
    if (length < 12 || memcmp(buffer + 8, " 200", 4))
        fail("an answer has another status than 200", "");
    *end = 0;
    if (!(field = strcasestr(buffer, "\r\nContent-Length:")))
        fail("an answer has no Content-Length", "");
    content = atof(field + 17);
    left = content - (double)(length - (size_t)(end + 4 - buffer));
    while (left > 0)
        left -= (double)read_some(tls, buffer, CHUNK);
    if (left < 0)
        fail("an answer is followed by what nobody asked for", "");
    count(began, content);
}

/* ---- HTTP/2 (RFC 9113), as much of it as a client of small files needs ---- */

struct h2 {
    unsigned char input[4 * FRAME], output[4 * FRAME];
    size_t have, length;           /* of them */
    uint32_t stream;               /* the next one */
    uint32_t ids[STREAMS];         /* of those that are open; 0: none */
    double began[STREAMS];
    double sizes[STREAMS];         /* octets of content so far */
};

static void put_frame(struct h2 *h2, int type, int flags, uint32_t stream, const void *content, size_t size)
{
    unsigned char head[FRAME_HEAD] = {(unsigned char)(size >> 16), (unsigned char)(size >> 8), (unsigned char)size,
        (unsigned char)type, (unsigned char)flags, (unsigned char)(stream >> 24), (unsigned char)(stream >> 16),
        (unsigned char)(stream >> 8), (unsigned char)stream};
    memcpy(h2->output + h2->length, head, sizeof head);
    memcpy(h2->output + h2->length + sizeof head, content, size);
    h2->length += sizeof head + size;
}

/* HPACK without a table: :method and :scheme by their numbers, :path and :authority as they are. */
static void put_request(struct h2 *h2, int slot, const char *host)
{
    char block[400], authority[120];
    int size = snprintf(authority, sizeof authority, "%s:%d", host, origin_port);
    size = snprintf(block, sizeof block, "\x82\x87\x04%c%s\x01%c%s", (int)strlen(path), path, size, authority);
    h2->ids[slot] = h2->stream;
    h2->began[slot] = now();
    h2->sizes[slot] = 0;
    put_frame(h2, HEADERS, END_STREAM | END_HEADERS, h2->stream, block, (size_t)size);
    h2->stream += 2;
}

static int slot_of(struct h2 *h2, uint32_t stream)
{
    for (int slot = 0; slot < STREAMS; slot++)
        if (h2->ids[slot] == stream)
            return slot;
    fail("a frame belongs to no stream that is open", "");
}

/* Takes one frame. Returns how many streams have ended and were not followed by another. */
static int take_frame(struct h2 *h2, const unsigned char *frame, size_t size, const char *host)
{
    int type = frame[3], flags = frame[4];
    uint32_t stream = (uint32_t)frame[5] << 24 | (uint32_t)frame[6] << 16 | (uint32_t)frame[7] << 8 | frame[8];
    if (type == RST_STREAM || type == GOAWAY)
        fail(type == GOAWAY ? "GOAWAY" : "RST_STREAM", "");
    if ((type == SETTINGS || type == PING) && !(flags & ACK))
        put_frame(h2, type, ACK, 0, frame + FRAME_HEAD, type == PING ? size : 0);
    if (type != DATA && type != HEADERS)
        return 0;
    int slot = slot_of(h2, stream);
    h2->sizes[slot] += type == DATA ? (double)size : 0;
    if (!(flags & END_STREAM))
        return 0;
    if (h2->sizes[slot] == 0)
        fail("an answer of HTTP/2 has no content", "");
    count(h2->began[slot], h2->sizes[slot]);
    h2->ids[slot] = 0;
    if (now() >= deadline)
        return 1;
    put_request(h2, slot, host);
    return 0;
}

static void run_h2(SSL *tls, const char *host)
{
    /* The preface, a window for each stream and one for all that never have to be opened again. */
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\6\4\0\0\0\0\0\0\4\x7f\xff\xff\xff"
                                  "\0\0\4\x8\0\0\0\0\0\x7f\xfe\0\0";
    const unsigned char *chosen;
    unsigned size;
    SSL_get0_alpn_selected(tls, &chosen, &size);
    if (size != 2 || memcmp(chosen, "h2", 2))
        fail("the proxy does not speak HTTP/2", "");
    struct h2 *h2 = calloc(1, sizeof *h2);
    h2->stream = 1;
    memcpy(h2->output, preface, sizeof preface - 1);
    h2->length = sizeof preface - 1;
    for (int slot = 0; slot < STREAMS; slot++)
        put_request(h2, slot, host);
    for (int open = STREAMS; open;) {
        write_all(tls, h2->output, h2->length);
        h2->length = 0;
        h2->have += read_some(tls, h2->input + h2->have, sizeof h2->input - h2->have);
        const unsigned char *at = h2->input, *end = h2->input + h2->have;
        while (end - at >= FRAME_HEAD) {
            size_t length = (size_t)at[0] << 16 | (size_t)at[1] << 8 | at[2];
            if (length > FRAME)
                fail("a frame is too long", "");
            if ((size_t)(end - at) < FRAME_HEAD + length)
                break;
            open -= take_frame(h2, at, length, host);
            at += FRAME_HEAD + length;
            if (h2->length > sizeof h2->output / 2) {
                write_all(tls, h2->output, h2->length);
                h2->length = 0;
            }
        }
        h2->have = (size_t)(end - at);
        memmove(h2->input, at, h2->have);
    }
    free(h2);
}

/* ---- one thread for each connection ---- */

static void *work(void *nothing)
{
    char *buffer = malloc(CHUNK), host[32] = "origin.tabi.bench";
    bool lasting = !strcmp(mode, "keep") || !strcmp(mode, "h2"), hosts = !strcmp(mode, "hosts");
    do {
        if (hosts) {
            pthread_mutex_lock(&lock);
            snprintf(host, sizeof host, "h%ld.tabi.bench", next_host++);
            pthread_mutex_unlock(&lock);
        }
        double began = now();
        SSL *tls = open_tls(host);
        if (!strcmp(mode, "h2"))
            run_h2(tls, host);
        else
            do
                get(tls, host, buffer, lasting ? now() : began); /* of a new connection all of it counts */
            while (lasting && now() < deadline);
        close_tls(tls);
    } while (!lasting && now() < deadline);
    free(buffer);
    return nothing;
}

static int compare_samples(const void *left, const void *right)
{
    float a = *(const float *)left, b = *(const float *)right;
    return (a > b) - (a < b);
}

int main(int argc, char **argv)
{
    static pthread_t threads[MAX_CONNECTIONS];
    if (argc < 9)
        fail("wrong arguments: the top of https.c has them", "");
    mode = argv[1];
    proxy_port = atoi(argv[2]);
    way = argv[3];
    origin_port = atoi(argv[4]);
    int threads_wanted = atoi(argv[6]);
    path = argv[8];
    next_host = argc > 9 ? atol(argv[9]) : 0;
    if (threads_wanted < 1 || threads_wanted > MAX_CONNECTIONS || strlen(path) > 100)
        fail("wrong arguments: the top of https.c has them", "");
    signal(SIGPIPE, SIG_IGN);
    context = SSL_CTX_new(TLS_client_method());
    if (!context || SSL_CTX_load_verify_locations(context, argv[5], NULL) != 1)
        fail("the file of the authority cannot be used", "");
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    if (!strcmp(mode, "h2"))
        SSL_CTX_set_alpn_protos(context, (const unsigned char *)"\2h2", 3);
    else
        SSL_CTX_set_alpn_protos(context, (const unsigned char *)"\x8http/1.1", 9);
    double start = now();
    deadline = start + atof(argv[7]);
    for (int i = 0; i < threads_wanted; i++)
        if (pthread_create(&threads[i], NULL, work, NULL))
            fail("a thread cannot be made", "");
    for (int i = 0; i < threads_wanted; i++)
        pthread_join(threads[i], NULL);
    double seconds = now() - start;
    qsort(samples, (size_t)done, sizeof *samples, compare_samples);
    printf("{\"count\": %ld, \"seconds\": %.6f, \"p50\": %.7f, \"p99\": %.7f, \"connections\": %ld, \"octets\": %.0f}\n",
        done, seconds, (double)samples[done / 2], (double)samples[done * 99 / 100], connections, octets);
    return 0;
}

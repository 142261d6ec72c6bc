/* load: puts load on a proxy on this machine, SOCKS5 or HTTP, and measures what comes back.
 *
 *   load conn PORT TOTAL AT_ONCE            connect, echo 64 octets, close: TOTAL times, AT_ONCE of them at a time
 *   load bulk PORT down|up STREAMS SECONDS  as many octets as go through, in one direction
 *   load tls PORT down|up STREAMS SECONDS [straight]    bulk inside TLS 1.3, SOCKS5 too
 *   load ping PORT STREAMS SECONDS          echo 64 octets, again and again, on each of STREAMS tunnels
 *   load pace PORT STREAMS RATE SECONDS     echo 64 octets RATE times/s on each of STREAMS tunnels, evenly spread in time
 *   load idle PORT TUNNELS                  open them, print the result, hold them until standard input ends
 *   load udp PORT SIZE WINDOW SECONDS       echo datagrams of SIZE octets through 1 association, WINDOW under way
 *   load voices PORT COUNT RATE SECONDS     echo RATE datagrams/s on each of COUNT associations, evenly spread in time
 *   load associations PORT COUNT            open them, echo a datagram on each, print the result, hold them like idle
 *   load http PORT CLIENTS SECONDS          GET 1 KiB, again and again, on each of CLIENTS connections
 *
 * PORT is the server's, on 127.0.0.1. Port 0 means no server: straight to the destination, which shows the most that
 * this machine can do. The destination is a process of its own, forked at the start, on a free port for each of TCP and
 * UDP.
 *
 * tls offers one cipher, TLS_AES_256_GCM_SHA384, and believes any certificate. With `straight` it speaks no SOCKS5: the
 * server leads to the destination by itself. Its port is in the name of the SNI, "port-NUMBER".
 *
 * http asks an HTTP proxy with absolute URIs. The destination is then a web server that keeps connections open if the
 * proxy does. Where an answer says that the connection closes, the client opens the next one, which is part of the time
 * of the next answer; `connections` has how many it opened.
 *
 * `user` behind the arguments of any but tls and http: the tunnels are those of the user alice, whose password is secret.
 * `name` there: they are asked for by a name, known.bench, not by an address.
 *
 * Datagrams carry the time at which they were sent, and their echoes must have the length and the header (RFC 1928,
 * section 7) of what was sent. `lost` are those that never came back: in udp, once nothing has come for 0.1 s, another
 * window is sent; voices waits 1 s at its end.
 *
 * Prints one JSON object on a line: the figures (exit code 0), or {"error": "...", "after": COUNT} (exit code 1), where
 * COUNT is how many echoes, or else how many tunnels or associations, had gone well. The first thing that fails ends
 * the run.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/ssl.h>

enum {
    MESSAGE = 64,              /* octets of one echo */
    CHUNK = 256 * 1024,        /* octets of one send or recv of the bulk scenarios */
    HEADER = 10,               /* octets before the content of a datagram, with an IPv4 address */
    MAX_DATAGRAM = 65507,      /* octets of a datagram over IPv4 */
    VOICE = 200,               /* octets of one datagram of voices */
    BODY = 1024,               /* octets of content in one answer of http */
    HEAD = 4096,               /* octets of the longest head of a request or an answer */
    BATCH = 64,                /* datagrams that are received from a socket in one turn of a loop */
    RECEIVE_BUFFER = 8 << 20,  /* octets: what is lost shall be lost by the server */
    OPENING_AT_ONCE = 64,      /* tunnels or associations that are opened at a time, other than in conn */
    QUIET_MILLISECONDS = 100,  /* without any event: what is under way in udp is lost */
    STUCK_SECONDS = 15,        /* without any event: the server has failed */
    EVENTS = 512,              /* of one turn of a loop */
    MAX_DESCRIPTORS = 1 << 20, /* the most that Linux gives a process (fs.nr_open) */
    MAX_SAMPLES = 1 << 25,     /* echoes of one run */
};

/* The first octet of a connection tells the destination what to do on it. */
enum { UNKNOWN, ECHO = 'E', SOURCE = 'S', SINK = 'D', WEB = 'G' };

static struct epoll_event events[EVENTS];
static char chunk[CHUNK];
static int poller, server_port, destination_port, datagram_port, destination_pid;
static long done; /* tunnels that have opened; then the echoes that came back */
static _Atomic long long *sunk; /* octets that reached the destination's sinks; shared by both processes */

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Ends the run. `format` has our own words and strerror()'s: nothing that JSON would have to escape. */
__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    printf("{\"error\": \"");
    vprintf(format, arguments);
    printf("\", \"after\": %ld}\n", done);
    va_end(arguments);
    exit(1);
}

static struct sockaddr_in loopback(int port)
{
    struct in_addr host = {htonl(INADDR_LOOPBACK)};
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = host};
}

static void watch(int operation, int fd, uint32_t interest, epoll_data_t data)
{
    struct epoll_event event = {.events = interest, .data = data};
    if (epoll_ctl(poller, operation, fd, &event))
        fail("epoll_ctl: %s", strerror(errno));
}

static bool would_block(ssize_t result)
{
    return result < 0 && (errno == EAGAIN || errno == EINTR);
}

/* It blocks, so that nothing is lost for want of room to send; receiving is asked not to. */
static int datagram_socket(void)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0)
        fail("socket: %s", strerror(errno));
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &(int){RECEIVE_BUFFER}, sizeof(int))) /* only root may */
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &(int){RECEIVE_BUFFER}, sizeof(int));
    return fd;
}

/* ---- HTTP, as much of it as both sides need ---- */

static const char *field_value(const char *head, const char *field)
{
    const char *found = strcasestr(head, field);
    return found ? found + strlen(field) + strspn(found + strlen(field), " \t") : NULL;
}

/* Whether the connection closes after the request or the answer with this head (RFC 9112, section 9.3). */
static bool is_last(const char *head)
{
    const char *value = field_value(head, "\r\nConnection:");
    return value ? !strncasecmp(value, "close", 5) : strstr(head, "HTTP/1.0") != NULL;
}

/* ---- the destination: one process, one loop ---- */

static unsigned char modes[MAX_DESCRIPTORS];
static char *heads[MAX_DESCRIPTORS]; /* of a web server's connection: what came of a request that is not whole */

static bool accept_connections(int listener)
{
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        modes[fd] = UNKNOWN;
        watch(EPOLL_CTL_ADD, fd, EPOLLIN, (epoll_data_t){.fd = fd});
    }
    return true;
}

/* Answers the requests that are whole with `length` octets more. False: the connection is over. */
static bool answer(int fd, size_t length)
{
    static const char fields[] = "Server: load\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: text/plain\r\n"
                                 "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nETag: \"1k\"\r\n";
    char *head = heads[fd], *end, reply[HEAD + BODY];
    size_t before = strlen(head);
    if (before + length >= HEAD)
        return false;
    memcpy(head + before, chunk, length);
    head[before + length] = 0;
    while ((end = strstr(head, "\r\n\r\n"))) {
        end[2] = 0;
        bool last = is_last(head), known = strstr(head, "/1k HTTP/1.");
        int size = snprintf(reply, HEAD, "HTTP/1.1 %s\r\n%s%sContent-Length: %d\r\n\r\n",
            known ? "200 OK" : "404 Not Found", fields, last ? "Connection: close\r\n" : "", BODY);
        memset(reply + size, WEB, BODY);
        /* The one before has been read by whoever asks again: it always fits. */
        if (send(fd, reply, (size_t)size + BODY, MSG_NOSIGNAL) != size + BODY || last)
            return false;
        memmove(head, end + 4, strlen(end + 4) + 1);
    }
    return true;
}

/* Reads once and does what the connection's mode says. False: the connection is over. */
static bool take(int fd)
{
    ssize_t length = recv(fd, chunk, CHUNK, 0);
    if (length <= 0)
        return would_block(length);
    if (modes[fd] == UNKNOWN) {
        modes[fd] = (unsigned char)chunk[0];
        if (modes[fd] == SOURCE)
            watch(EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLOUT, (epoll_data_t){.fd = fd});
        if (modes[fd] == WEB && !heads[fd])
            heads[fd] = malloc(HEAD);
        if (modes[fd] == WEB)
            heads[fd][0] = 0;
    }
    if (modes[fd] == WEB)
        return answer(fd, (size_t)length);
    if (modes[fd] == SINK)
        atomic_fetch_add(sunk, length);
    if (modes[fd] == ECHO) /* never more than one message is on its way: it always fits */
        return send(fd, chunk, (size_t)length, MSG_NOSIGNAL) == length;
    return true;
}

static bool give(int fd)
{
    ssize_t length = send(fd, chunk, CHUNK, MSG_NOSIGNAL);
    return length >= 0 || would_block(length);
}

/* One by one, as the client's side does it: with recvmmsg and sendmmsg a window would go round as one lump, and client,
 * server and destination would wait for each other instead of working side by side. */
static bool echo_datagrams(int fd)
{
    struct sockaddr_in peer;
    ssize_t length;
    for (int i = 0; i < BATCH; i++) {
        length = recvfrom(fd, chunk, CHUNK, MSG_DONTWAIT, (struct sockaddr *)&peer, &(socklen_t){sizeof peer});
        if (length < 0)
            break;
        sendto(fd, chunk, (size_t)length, 0, (struct sockaddr *)&peer, sizeof peer);
    }
    return true;
}

__attribute__((noreturn)) static void run_destination(int listener, int datagrams)
{
    poller = epoll_create1(0);
    watch(EPOLL_CTL_ADD, listener, EPOLLIN, (epoll_data_t){.fd = listener});
    watch(EPOLL_CTL_ADD, datagrams, EPOLLIN, (epoll_data_t){.fd = datagrams});
    for (;;) {
        int count = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            bool to_read = events[i].events & ~(uint32_t)EPOLLOUT;
            if (!(fd == listener    ? accept_connections(fd)
                  : fd == datagrams ? echo_datagrams(fd)
                  : to_read         ? take(fd)
                                    : give(fd)))
                close(fd);
        }
    }
}

static void end_destination(void)
{
    kill(destination_pid, SIGKILL);
    waitpid(destination_pid, NULL, 0);
}

/* Returns the free port that it got. */
static int bind_to_loopback(int fd)
{
    struct sockaddr_in address = loopback(0);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) ||
        getsockname(fd, (struct sockaddr *)&address, &(socklen_t){sizeof address}))
        fail("the destination cannot have a port: %s", strerror(errno));
    return ntohs(address.sin_port);
}

static void start_destination(void)
{
    sunk = mmap(NULL, sizeof *sunk, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int datagrams = datagram_socket();
    destination_port = bind_to_loopback(listener);
    datagram_port = bind_to_loopback(datagrams);
    if (sunk == MAP_FAILED || listen(listener, 4096))
        fail("the destination cannot listen: %s", strerror(errno));
    destination_pid = fork();
    if (destination_pid < 0)
        fail("fork: %s", strerror(errno));
    if (destination_pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* also when the load itself is killed */
        run_destination(listener, datagrams);
    }
    close(listener);
    close(datagrams);
    atexit(end_destination);
}

/* ---- the client's side of a tunnel, or of an association ---- */

enum state { CONNECTING, SECURING, GREETED, PROVING, REQUESTED, OPEN };

static enum { CONNECT = 1, ASSOCIATE = 3 } command = CONNECT; /* of every request */
static const char *const names[] = {[CONNECT] = "CONNECT", [ASSOCIATE] = "UDP ASSOCIATE"};
static bool opening;     /* open_tunnels() waits for the server's answers */
static bool straight;    /* no SOCKS5 */
static bool user;        /* the method is user name and password, those of alice */
static bool name;        /* the destination is asked for by one */
static SSL_CTX *context; /* of every tunnel's TLS; NULL: without */
static long connections; /* that the client has opened */

struct tunnel {
    int fd;
    int datagrams; /* the UDP socket of an association */
    SSL *tls;      /* or NULL */
    enum state state;
    size_t received;         /* octets of the answer that is awaited */
    double began;            /* connecting, or the present round trip */
    unsigned char reply[10]; /* with an IPv4 address, as the request has one */
};

static void begin(struct tunnel *tunnel)
{
    struct sockaddr_in address = loopback(server_port ? server_port : destination_port);
    *tunnel = (struct tunnel){.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), .began = now()};
    if (tunnel->fd < 0)
        fail("socket: %s", strerror(errno));
    setsockopt(tunnel->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    if (connect(tunnel->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        fail("connect: %s", strerror(errno));
    watch(EPOLL_CTL_ADD, tunnel->fd, EPOLLOUT, (epoll_data_t){.ptr = tunnel});
    connections++;
}

/* What send() or recv() would have returned in place of a TLS call that returned `result`, with errno. */
static ssize_t tls_result(struct tunnel *tunnel, int result)
{
    if (result > 0)
        return result;
    int error = SSL_get_error(tunnel->tls, result);
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
        errno = EAGAIN;
    else if (error == SSL_ERROR_ZERO_RETURN)
        return 0;
    else if (error != SSL_ERROR_SYSCALL) {
        const char *reason = ERR_reason_error_string(ERR_peek_error());
        fail("TLS: %s", reason ? reason : "no reason known");
    }
    return -1;
}

static ssize_t send_some(struct tunnel *tunnel, const void *octets, size_t length)
{
    if (!tunnel->tls)
        return send(tunnel->fd, octets, length, MSG_NOSIGNAL);
    return tls_result(tunnel, SSL_write(tunnel->tls, octets, (int)length));
}

static ssize_t receive_some(struct tunnel *tunnel, void *buffer, size_t length)
{
    if (!tunnel->tls)
        return recv(tunnel->fd, buffer, length, 0);
    return tls_result(tunnel, SSL_read(tunnel->tls, buffer, (int)length));
}

static void send_octets(struct tunnel *tunnel, const void *octets, size_t length)
{
    tunnel->received = 0;
    if (send_some(tunnel, octets, length) < 0)
        fail("send: %s", strerror(errno));
}

/* Reads what is there, up to `wanted` octets in all since the last send. True: that many have come. */
static bool receive(struct tunnel *tunnel, void *buffer, size_t wanted)
{
    ssize_t length = receive_some(tunnel, (char *)buffer + tunnel->received, wanted - tunnel->received);
    if (length == 0)
        fail(tunnel->state == OPEN ? "the server closed a tunnel" : "the server closed during the handshake");
    if (length < 0 && !would_block(length))
        fail("recv: %s", strerror(errno));
    tunnel->received += length > 0 ? (size_t)length : 0;
    return tunnel->received == wanted;
}

/* One cipher, so that every server encrypts alike; and few calls, so that the server is what is measured. */
static void prepare_tls(void)
{
    context = SSL_CTX_new(TLS_client_method());
    if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) ||
        !SSL_CTX_set_ciphersuites(context, "TLS_AES_256_GCM_SHA384"))
        fail("this OpenSSL cannot do TLS 1.3");
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE);
    SSL_CTX_set_read_ahead(context, 1);
    SSL_CTX_set_default_read_buffer_len(context, CHUNK);
}

static void greet(struct tunnel *tunnel)
{
    if (!straight)
        send_octets(tunnel, user ? "\x05\x01\x02" : "\x05\x01\x00", 3);
    tunnel->state = straight ? OPEN : GREETED;
}

/* Takes the next step of the TLS handshake. */
static void secure(struct tunnel *tunnel)
{
    ssize_t result = tls_result(tunnel, SSL_connect(tunnel->tls));
    if (result <= 0 && !would_block(result))
        fail("the server closed during the TLS handshake");
    if (result > 0)
        greet(tunnel);
}

static void begin_tls(struct tunnel *tunnel)
{
    char name[32];
    snprintf(name, sizeof name, "port-%d", destination_port);
    tunnel->tls = SSL_new(context);
    if (!tunnel->tls || !SSL_set_fd(tunnel->tls, tunnel->fd) || !SSL_set_tlsext_host_name(tunnel->tls, name))
        fail("TLS cannot begin");
    tunnel->state = SECURING;
    secure(tunnel);
}

static void ask(struct tunnel *tunnel)
{
    unsigned char high = (unsigned char)(destination_port >> 8), low = (unsigned char)destination_port;
    if (command == CONNECT && name)
        send_octets(tunnel, (unsigned char[]){5, CONNECT, 0, 3, 11, 'k', 'n', 'o', 'w', 'n', '.', 'b', 'e', 'n', 'c', 'h',
                                              high, low}, 18);
    else if (command == CONNECT)
        send_octets(tunnel, (unsigned char[]){5, CONNECT, 0, 1, 127, 0, 0, 1, high, low}, 10);
    else /* from an address that is not known yet */
        send_octets(tunnel, (unsigned char[]){5, ASSOCIATE, 0, 1, 0, 0, 0, 0, 0, 0}, 10);
    tunnel->state = REQUESTED;
}

/* Takes the next step of the handshake. True: the tunnel has just opened. */
static bool advance(struct tunnel *tunnel)
{
    if (tunnel->state == CONNECTING) {
        int error = 0;
        getsockopt(tunnel->fd, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error});
        if (error)
            fail("connect: %s", strerror(error));
        watch(EPOLL_CTL_MOD, tunnel->fd, EPOLLIN, (epoll_data_t){.ptr = tunnel});
        if (context)
            begin_tls(tunnel);
        else
            greet(tunnel);
    } else if (tunnel->state == SECURING) {
        secure(tunnel);
    } else if (tunnel->state == GREETED && receive(tunnel, tunnel->reply, 2)) {
        if (tunnel->reply[0] != 5 || tunnel->reply[1] != (user ? 2 : 0))
            fail("the server refused the method '%s'", user ? "user name and password" : "no authentication");
        if (user)
            send_octets(tunnel, "\x01\x05" "alice" "\x06" "secret", 14);
        tunnel->state = PROVING;
        if (!user)
            ask(tunnel);
    } else if (tunnel->state == PROVING && receive(tunnel, tunnel->reply, 2)) {
        if (tunnel->reply[1] != 0)
            fail("the server refused the user");
        ask(tunnel);
    } else if (tunnel->state == REQUESTED && receive(tunnel, tunnel->reply, sizeof tunnel->reply)) {
        if (tunnel->reply[1] != 0)
            fail("the server refused %s with reply %02X", names[command], tunnel->reply[1]);
        tunnel->state = OPEN;
    } else if (tunnel->state == OPEN) {
        fail("the server closed a tunnel");
    }
    return tunnel->state == OPEN;
}

static int wait_events(void)
{
    static double last;
    int count = epoll_wait(poller, events, EVENTS, QUIET_MILLISECONDS);
    if (count > 0 || last == 0)
        last = now();
    else if (now() - last > STUCK_SECONDS && opening)
        fail("no answer to %s for %d seconds", names[command], STUCK_SECONDS);
    else if (now() - last > STUCK_SECONDS)
        fail("nothing happened for %d seconds", STUCK_SECONDS);
    return count;
}

/* Gives an association that has just opened its UDP socket, connected to where the server's reply says. */
static void open_datagrams(struct tunnel *tunnel)
{
    struct sockaddr_in address = loopback(datagram_port);
    if (server_port) {
        if (tunnel->reply[3] != 1)
            fail("the reply to UDP ASSOCIATE has no IPv4 address");
        memcpy(&address.sin_port, tunnel->reply + 8, 2);
        memcpy(&address.sin_addr, tunnel->reply + 4, 4);
        if (!address.sin_addr.s_addr) /* 0.0.0.0: where the server is */
            address.sin_addr = loopback(0).sin_addr;
    }
    tunnel->datagrams = datagram_socket();
    if (connect(tunnel->datagrams, (struct sockaddr *)&address, sizeof address))
        fail("connect, to the server's UDP port: %s", strerror(errno));
    watch(EPOLL_CTL_MOD, tunnel->fd, EPOLLRDHUP, (epoll_data_t){.ptr = tunnel});
    watch(EPOLL_CTL_ADD, tunnel->datagrams, EPOLLIN, (epoll_data_t){.ptr = tunnel});
}

static struct tunnel *open_tunnels(long total)
{
    struct tunnel *tunnels = calloc((size_t)total, sizeof *tunnels);
    opening = true;
    for (long begun = 0; done < total;) {
        while (begun < total && begun - done < OPENING_AT_ONCE)
            begin(&tunnels[begun++]);
        int count = wait_events();
        for (int i = 0; i < count; i++) {
            if (!advance(events[i].data.ptr))
                continue;
            if (command == ASSOCIATE)
                open_datagrams(events[i].data.ptr);
            done++;
        }
    }
    opening = false;
    return tunnels;
}

/* ---- echoes and their times ---- */

static const char message[MESSAGE] = {ECHO};
static float samples[MAX_SAMPLES]; /* seconds of each, `done` of them; untouched pages cost nothing */

static void keep_sample(double seconds)
{
    if (done == MAX_SAMPLES)
        fail("too many echoes");
    samples[done++] = (float)seconds;
}

static int compare_samples(const void *left, const void *right)
{
    float a = *(const float *)left, b = *(const float *)right;
    return (a > b) - (a < b);
}

/* `sent`: how many datagrams; 0 where none can be lost. */
static void print_echoes(double seconds, long sent)
{
    if (!done)
        fail("not one echo came back");
    if (sent && done > sent)
        fail("more echoes came back than were sent");
    qsort(samples, (size_t)done, sizeof *samples, compare_samples);
    printf("{\"count\": %ld, \"seconds\": %.6f, \"p50\": %.7f, \"p99\": %.7f, \"connections\": %ld", done, seconds,
        (double)samples[done / 2], (double)samples[done * 99 / 100], connections);
    if (sent)
        printf(", \"sent\": %ld, \"lost\": %ld", sent, sent - done);
    puts("}");
}

/* What clients send: RSV, FRAG, ATYP, the destination; the time; zeros. Echoes have the same header, for the
 * destination is where they come from. */
static unsigned char datagram[MAX_DATAGRAM] = {0, 0, 0, 1, 127, 0, 0, 1};

/* Sends one, with `size` octets of content. */
static void send_datagram(struct tunnel *tunnel, size_t size)
{
    double time = now();
    datagram[8] = (unsigned char)(datagram_port >> 8);
    datagram[9] = (unsigned char)datagram_port;
    memcpy(datagram + HEADER, &time, sizeof time);
    if (send(tunnel->datagrams, datagram, HEADER + size, 0) < 0)
        fail("sending a datagram: %s", strerror(errno));
}

/* Takes the echoes that are there, up to a batch, and the time that each took. Returns how many. */
static int receive_echoes(struct tunnel *tunnel, size_t size)
{
    double sent;
    for (int echoes = 0; echoes < BATCH; echoes++) {
        ssize_t length = recv(tunnel->datagrams, chunk, CHUNK, MSG_DONTWAIT);
        if (would_block(length))
            return echoes;
        if (length < 0)
            fail("receiving a datagram: %s", strerror(errno));
        if ((size_t)length != HEADER + size)
            fail("an echo has %zd octets, not %zu", length, HEADER + size);
        if (memcmp(chunk, datagram, HEADER))
            fail("an echo has another header than what was sent");
        memcpy(&sent, chunk + HEADER, sizeof sent);
        keep_sample(now() - sent);
    }
    return BATCH;
}

/* Waits for events, 0.1 s at most, and takes the echoes of which they tell. Returns how many. */
static int wait_echoes(size_t size)
{
    int echoes = 0, count = wait_events();
    for (int i = 0; i < count; i++) {
        if (events[i].events & EPOLLRDHUP)
            fail("the server closed an association");
        if (events[i].data.ptr) /* not the timer of voices */
            echoes += receive_echoes(events[i].data.ptr, size);
    }
    return echoes;
}

/* ---- the scenarios ---- */

/* With a reset, which leaves no port in TIME_WAIT: so many would use them up. */
static void drop(struct tunnel *tunnel)
{
    setsockopt(tunnel->fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    close(tunnel->fd);
}

static void run_conn(long total, long at_once)
{
    struct tunnel *tunnels = calloc((size_t)at_once, sizeof *tunnels);
    double start = now();
    long begun = 0;
    for (; begun < at_once && begun < total; begun++)
        begin(&tunnels[begun]);
    while (done < total) {
        int count = wait_events();
        for (int i = 0; i < count; i++) {
            struct tunnel *tunnel = events[i].data.ptr;
            if (tunnel->state != OPEN && advance(tunnel)) {
                send_octets(tunnel, message, MESSAGE);
            } else if (tunnel->state == OPEN && receive(tunnel, chunk, MESSAGE)) {
                keep_sample(now() - tunnel->began);
                drop(tunnel);
                if (begun++ < total)
                    begin(tunnel);
            }
        }
    }
    print_echoes(now() - start, 0);
}

static void run_ping(long streams, double seconds)
{
    struct tunnel *tunnels = open_tunnels(streams);
    double start = now(), time = start;
    done = 0; /* from here on it counts echoes */
    for (long i = 0; i < streams; i++) {
        tunnels[i].began = now();
        send_octets(&tunnels[i], message, MESSAGE);
    }
    for (; time < start + seconds; time = now()) {
        int count = wait_events();
        for (int i = 0; i < count; i++) {
            struct tunnel *tunnel = events[i].data.ptr;
            if (!receive(tunnel, chunk, MESSAGE))
                continue;
            time = now();
            keep_sample(time - tunnel->began);
            tunnel->began = time;
            send_octets(tunnel, message, MESSAGE);
        }
    }
    print_echoes(time - start, 0);
}

/* A timer that is due so many times a second, among the events as NULL. */
static int start_timer(long rate)
{
    long interval = 1000000000 / rate;
    struct timespec each = {interval / 1000000000, interval % 1000000000};
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    if (timer < 0 || timerfd_settime(timer, 0, &(struct itimerspec){each, each}, NULL))
        fail("timerfd: %s", strerror(errno));
    watch(EPOLL_CTL_ADD, timer, EPOLLIN, (epoll_data_t){.ptr = NULL});
    return timer;
}

static void run_pace(long streams, long rate, double seconds)
{
    if (streams < 1 || rate < 1)
        fail("STREAMS and RATE must be at least 1");
    struct tunnel *tunnels = open_tunnels(streams);
    long sent = 0, total = (long)((double)(streams * rate) * seconds);
    int timer = start_timer(streams * rate);
    double start = now();
    done = 0; /* from here on it counts echoes */
    while (done < total) {
        int count = wait_events();
        for (int i = 0; i < count; i++) {
            struct tunnel *tunnel = events[i].data.ptr;
            if (tunnel && receive(tunnel, chunk, MESSAGE))
                keep_sample(now() - tunnel->began);
        }
        uint64_t due;
        if (sent == total || read(timer, &due, sizeof due) < 0)
            continue;
        for (; due > 0 && sent < total; due--, sent++) {
            struct tunnel *tunnel = &tunnels[sent % streams];
            tunnel->began = now();
            send_octets(tunnel, message, MESSAGE);
        }
        if (sent == total)
            close(timer);
    }
    print_echoes(now() - start, 0);
}

static void run_bulk(bool down, long streams, double seconds)
{
    struct tunnel *tunnels = open_tunnels(streams);
    memset(chunk, down ? SOURCE : SINK, CHUNK);
    double start = now(), time = start;
    for (long i = 0; i < streams; i++) {
        send_octets(&tunnels[i], chunk, 1);
        if (!down)
            watch(EPOLL_CTL_MOD, tunnels[i].fd, EPOLLOUT, (epoll_data_t){.ptr = &tunnels[i]});
    }
    long long octets = 0;
    for (; time < start + seconds; time = now()) {
        int count = wait_events();
        for (int i = 0; i < count; i++) {
            struct tunnel *tunnel = events[i].data.ptr;
            ssize_t length;
            do {
                length = down ? receive_some(tunnel, chunk, CHUNK) : send_some(tunnel, chunk, CHUNK);
                if (length <= 0 && !would_block(length))
                    fail("a tunnel was lost: %s", length ? strerror(errno) : "the server closed it");
                octets += length > 0 ? length : 0;
                /* TLS has read ahead: of that there will be no event. */
            } while (length > 0 && tunnel->tls && SSL_has_pending(tunnel->tls) && now() < start + seconds);
        }
    }
    if (!down)
        octets = atomic_load(sunk); /* what arrived, not what waits in buffers on the way */
    if (!octets)
        fail("not one octet arrived");
    printf("{\"octets\": %lld, \"seconds\": %.6f}\n", octets, time - start);
}

/* Prints the result and keeps everything open until standard input ends. */
static void hold(long total, double seconds)
{
    printf("{\"count\": %ld, \"seconds\": %.6f}\n", total, seconds);
    fflush(stdout);
    while (read(STDIN_FILENO, chunk, CHUNK) > 0)
        continue;
}

static void run_idle(long total)
{
    double start = now();
    open_tunnels(total);
    hold(total, now() - start);
}

static void run_udp(size_t size, long window, double seconds)
{
    if (size < sizeof(double) || size > MAX_DATAGRAM - HEADER)
        fail("SIZE must be from %zu to %d", sizeof(double), MAX_DATAGRAM - HEADER);
    struct tunnel *association = open_tunnels(1);
    double start = now(), time = start;
    long sent = 0, under_way = 0;
    done = 0; /* from here on it counts echoes */
    while (time < start + seconds || under_way) {
        for (; under_way < window && time < start + seconds; under_way++, sent++)
            send_datagram(association, size);
        int echoes = wait_echoes(size);
        under_way = echoes && echoes < under_way ? under_way - echoes : 0; /* none came: what is under way is lost */
        time = now();
    }
    print_echoes(time - start, sent);
}

static void run_voices(long voices, long rate, double seconds)
{
    if (voices < 1 || rate < 1)
        fail("COUNT and RATE must be at least 1");
    struct tunnel *associations = open_tunnels(voices);
    long sent = 0, total = (long)((double)(voices * rate) * seconds);
    int timer = start_timer(voices * rate);
    double start = now(), end = 0; /* when the last was sent */
    done = 0;                      /* from here on it counts echoes */
    while (sent < total || (done < sent && now() < end + 1)) {
        wait_echoes(VOICE);
        uint64_t due;
        if (sent == total || read(timer, &due, sizeof due) < 0)
            continue;
        for (; due > 0 && sent < total; due--) /* one, unless this process was late */
            send_datagram(&associations[sent++ % voices], VOICE);
        if (sent == total) {
            end = now();
            close(timer);
        }
    }
    print_echoes(end - start, sent);
}

static void run_associations(long total)
{
    double start = now();
    struct tunnel *associations = open_tunnels(total);
    done = 0;
    for (long i = 0; i < total; i++) { /* one after the other: none is lost in a crowd */
        double sent = now();
        send_datagram(&associations[i], MESSAGE);
        while (!wait_echoes(MESSAGE))
            if (now() > sent + 1)
                fail("no echo of a datagram within a second");
    }
    hold(total, now() - start);
}

struct client {
    struct tunnel tunnel; /* first: events point to it */
    long answers;         /* on this connection */
    size_t length;
    char octets[HEAD + BODY]; /* `length` of an answer, and a 0 */
};

/* Opens a client's next connection. */
static void begin_client(struct client *client)
{
    begin(&client->tunnel);
    client->answers = 0;
    client->length = 0;
}

/* Reads what is there of an answer. True: it is whole, and what it should be. */
static bool receive_answer(struct client *client)
{
    size_t room = sizeof client->octets - 1 - client->length;
    ssize_t length = recv(client->tunnel.fd, client->octets + client->length, room, 0);
    if (length <= 0 && !would_block(length)) {
        if (!client->answers || client->length)
            fail("the server closed a connection without an answer");
        drop(&client->tunnel); /* it may, between two answers: ask again (RFC 9112, section 9.3.1) */
        begin_client(client);
        return false;
    }
    client->length += length > 0 ? (size_t)length : 0;
    client->octets[client->length] = 0;
    char *end = strstr(client->octets, "\r\n\r\n");
    if (!end) {
        if (client->length >= HEAD)
            fail("the head of an answer has more than %d octets", HEAD);
        return false;
    }
    if (strncmp(client->octets, "HTTP/1.", 7) || strncmp(client->octets + 8, " 200", 4))
        fail("an answer has the status %d, not 200", atoi(client->octets + 9));
    const char *value = field_value(client->octets, "\r\nContent-Length:");
    if (!value || atoi(value) != BODY)
        fail("an answer has no Content-Length of %d", BODY);
    size_t whole = (size_t)(end + 4 - client->octets) + BODY;
    if (client->length > whole)
        fail("an answer is followed by what nobody asked for");
    if (client->length == whole && strspn(end + 4, (char[]){WEB, 0}) != BODY)
        fail("an answer has another content than what was sent");
    return client->length == whole;
}

static void run_http(long count, double seconds)
{
    struct client *clients = calloc((size_t)count, sizeof *clients);
    char request[HEAD];
    int size = snprintf(request, sizeof request,
        "GET http://127.0.0.1:%d/1k HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: load\r\nAccept: */*\r\n"
        "Accept-Language: en\r\nAccept-Encoding: gzip, deflate\r\nProxy-Connection: keep-alive\r\n\r\n",
        destination_port, destination_port);
    straight = true;
    double start = now(), time = start;
    for (long i = 0; i < count; i++)
        begin_client(&clients[i]);
    for (; time < start + seconds; time = now()) {
        int ready = wait_events();
        for (int i = 0; i < ready; i++) {
            struct client *client = events[i].data.ptr;
            struct tunnel *tunnel = &client->tunnel;
            if (tunnel->state == OPEN) {
                if (!receive_answer(client))
                    continue;
                time = now();
                keep_sample(time - tunnel->began);
                if (is_last(client->octets)) {
                    drop(tunnel);
                    begin_client(client);
                    continue;
                }
                client->answers++;
                client->length = 0;
                tunnel->began = time;
            } else if (!advance(tunnel)) {
                continue;
            }
            send_octets(tunnel, request, (size_t)size);
        }
    }
    print_echoes(time - start, 0);
}

int main(int argc, char **argv)
{
    const char *scenario = argc > 3 ? argv[1] : "";
    server_port = argc > 3 ? atoi(argv[2]) : 0;
    straight = !server_port;
    user = argc > 4 && !strcmp(argv[argc - 1], "user");
    argc -= user;
    name = argc > 4 && !strcmp(argv[argc - 1], "name");
    argc -= name;
    signal(SIGPIPE, SIG_IGN); /* TLS sends without MSG_NOSIGNAL */
    start_destination();
    poller = epoll_create1(0);
    if (!strcmp(scenario, "udp") || !strcmp(scenario, "voices") || !strcmp(scenario, "associations"))
        command = ASSOCIATE;
    if (!strcmp(scenario, "conn") && argc == 5)
        run_conn(atol(argv[3]), atol(argv[4]));
    else if (!strcmp(scenario, "bulk") && argc == 6)
        run_bulk(!strcmp(argv[3], "down"), atol(argv[4]), atof(argv[5]));
    else if (!strcmp(scenario, "tls") && server_port && (argc == 6 || (argc == 7 && !strcmp(argv[6], "straight")))) {
        prepare_tls();
        straight = argc == 7;
        run_bulk(!strcmp(argv[3], "down"), atol(argv[4]), atof(argv[5]));
    } else if (!strcmp(scenario, "ping") && argc == 5)
        run_ping(atol(argv[3]), atof(argv[4]));
    else if (!strcmp(scenario, "pace") && argc == 6)
        run_pace(atol(argv[3]), atol(argv[4]), atof(argv[5]));
    else if (!strcmp(scenario, "idle") && argc == 4)
        run_idle(atol(argv[3]));
    else if (!strcmp(scenario, "udp") && argc == 6)
        run_udp((size_t)atol(argv[3]), atol(argv[4]), atof(argv[5]));
    else if (!strcmp(scenario, "voices") && argc == 6)
        run_voices(atol(argv[3]), atol(argv[4]), atof(argv[5]));
    else if (!strcmp(scenario, "associations") && argc == 4)
        run_associations(atol(argv[3]));
    else if (!strcmp(scenario, "http") && argc == 5)
        run_http(atol(argv[3]), atof(argv[4]));
    else
        fail("wrong arguments: the top of load.c has them");
    return 0;
}

// A server for the pods of the tests. Each line that a TCP client sends, and each datagram, is answered by a line of two
// words: the host's name, which is the pod's, and the client's address and port as the server sees them.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	ports := flag.String("ports", "8080", "TCP and UDP ports, with commas between them")
	address := flag.String("address", "", "the address to listen on; all, if none is given")
	after := flag.Duration("after", 0, "listen no sooner than this after the start")
	term := flag.String("term", "exit", "what SIGTERM does: exit, at once; ignore")
	flag.Parse()
	name, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	// Asked for first: to the first process of a container SIGTERM does nothing otherwise.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	time.Sleep(*after)
	for _, port := range strings.Split(*ports, ",") {
		listen(name, net.JoinHostPort(*address, port))
	}
	for range signals {
		switch *term {
		case "exit":
			return
		case "ignore":
		default:
			log.Fatalf("-term %s: exit or ignore is expected", *term)
		}
	}
}

func listen(name, address string) {
	// Without an address: of both families.
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	socket, err := net.ListenPacket("udp4", address)
	if err != nil {
		log.Fatal(err)
	}
	go accept(name, listener)
	go answerDatagrams(name, socket)
}

func accept(name string, listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go answerLines(name, connection)
	}
}

func answerLines(name string, connection net.Conn) {
	defer connection.Close()
	answer := fmt.Sprintf("%s %s\n", name, connection.RemoteAddr())
	for lines := bufio.NewScanner(connection); lines.Scan(); {
		if _, err := connection.Write([]byte(answer)); err != nil {
			return
		}
	}
}

func answerDatagrams(name string, socket net.PacketConn) {
	buffer := make([]byte, 2048)
	for {
		_, client, err := socket.ReadFrom(buffer)
		if err != nil {
			log.Fatal(err)
		}
		// A client that is gone already is no failure of the server's.
		_, _ = socket.WriteTo([]byte(fmt.Sprintf("%s %s\n", name, client)), client)
	}
}

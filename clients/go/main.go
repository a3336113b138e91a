// Nine tasks against a klein server, one line each: main HOST:PORT
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"runtime"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	pb "klein.example/klein/v1"
)

// drawing is all that one stream brought.
type drawing struct {
	accepted  *pb.Accepted
	previews  []*pb.Preview
	header    *pb.ImageHeader
	image     []byte
	completed *pb.Completed
}

// stream is what Generate and Edit both return.
type stream interface {
	Recv() (*pb.ImageEvent, error)
}

// client holds the stubs, and the image that Edit gets as its reference.
type client struct {
	images pb.ImageServiceClient
	health health.HealthClient
	made   []byte
}

// read takes a stream to its end, calls onPreview after each preview, and checks order, length and hash.
func read(events stream, onPreview func()) (*drawing, error) {
	got := &drawing{}
	for sequence := uint32(0); got.completed == nil; sequence++ {
		event, err := events.Recv()
		if err != nil {
			return nil, err
		}
		if event.GetSequence() != sequence {
			return nil, fmt.Errorf("event %d came as number %d", event.GetSequence(), sequence)
		}
		switch one := event.GetEvent().(type) {
		case *pb.ImageEvent_Accepted:
			got.accepted = one.Accepted
		case *pb.ImageEvent_Preview:
			got.previews = append(got.previews, one.Preview)
			onPreview()
		case *pb.ImageEvent_ImageHeader:
			got.header = one.ImageHeader
		case *pb.ImageEvent_ImageChunk:
			got.image = append(got.image, one.ImageChunk.GetData()...)
		case *pb.ImageEvent_Completed:
			got.completed = one.Completed
		}
	}
	hash := sha256.Sum256(got.image)
	if uint64(len(got.image)) != got.header.GetSizeBytes() || !bytes.Equal(hash[:], got.header.GetSha256()) {
		return nil, fmt.Errorf("%d bytes do not have the header's length and hash", len(got.image))
	}
	return got, nil
}

func (c *client) generate(ctx context.Context, options *pb.ImageOptions) (*drawing, error) {
	events, err := c.images.Generate(ctx, &pb.GenerateRequest{Prompt: "a large red circle", Options: options})
	if err != nil {
		return nil, err
	}
	return read(events, func() {})
}

func (c *client) taskHealth(ctx context.Context) (string, error) {
	answer, err := c.health.Check(ctx, &health.HealthCheckRequest{})
	return answer.GetStatus().String(), expect(err, answer.GetStatus() == health.HealthCheckResponse_SERVING)
}

func (c *client) taskCapabilities(ctx context.Context) (string, error) {
	answer, err := c.images.GetCapabilities(ctx, &pb.GetCapabilitiesRequest{})
	return answer.GetModel(), expect(err, answer.GetModel() != "" && answer.GetChunkBytes() <= 1<<20)
}

func (c *client) taskGenerate(ctx context.Context) (string, error) {
	seed := uint64(math.MaxUint64)
	output := &pb.OutputOptions{Format: pb.ImageFormat_IMAGE_FORMAT_WEBP}
	got, err := c.generate(ctx, &pb.ImageOptions{Width: 128, Height: 128, Steps: 4, Seed: &seed, Output: output})
	if err != nil {
		return "", err
	}
	c.made = got.image
	told := len(got.previews) + int(got.completed.GetPreviewsSkipped())
	isJPEG := bytes.HasPrefix(got.previews[0].GetData(), []byte{0xff, 0xd8})
	return fmt.Sprintf("%d previews", len(got.previews)), expect(nil, told == 4 && isJPEG && got.accepted.GetSeed() == seed)
}

func (c *client) taskEdit(ctx context.Context) (string, error) {
	request := &pb.EditRequest{
		Prompt:     "make it green",
		References: []*pb.Reference{{Image: c.made}},
		Options:    &pb.ImageOptions{Steps: 2},
	}
	events, err := c.images.Edit(ctx, request)
	if err != nil {
		return "", err
	}
	got, err := read(events, func() {})
	if err != nil {
		return "", err
	}
	size := got.accepted.GetReferenceSizes()[0]
	return fmt.Sprintf("of %d×%d", size.GetWidth(), size.GetHeight()), expect(nil, size.GetWidth() == 128)
}

func (c *client) taskLarge(ctx context.Context) (string, error) {
	got, err := c.generate(ctx, &pb.ImageOptions{
		Width: 1040, Height: 1024, Steps: 1,
		Output:  &pb.OutputOptions{Format: pb.ImageFormat_IMAGE_FORMAT_RAW_RGBA},
		Preview: &pb.PreviewOptions{Disabled: true},
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d bytes", len(got.image)), expect(nil, len(got.image) == 1040*1024*4)
}

func (c *client) taskPNG(ctx context.Context) (string, error) {
	got, err := c.generate(ctx, &pb.ImageOptions{Width: 96, Height: 64, Steps: 1})
	if err != nil {
		return "", err
	}
	width, height := binary.BigEndian.Uint32(got.image[16:]), binary.BigEndian.Uint32(got.image[20:])
	isPNG := bytes.HasPrefix(got.image, []byte("\x89PNG\r\n\x1a\n"))
	return got.header.GetMimeType(), expect(nil, isPNG && width == 96 && height == 64)
}

func (c *client) taskCancel(ctx context.Context) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	options := &pb.ImageOptions{Width: 256, Height: 256, Steps: 50}
	events, err := c.images.Generate(ctx, &pb.GenerateRequest{Prompt: "a blue square", Options: options})
	if err != nil {
		return "", err
	}
	_, err = read(events, cancel)
	return status.Code(err).String(), expect(nil, status.Code(err) == codes.Canceled)
}

func (c *client) taskBadField(ctx context.Context) (string, error) {
	_, err := c.generate(ctx, &pb.ImageOptions{Width: 100, Height: 128})
	var reason, field string
	for _, detail := range status.Convert(err).Details() {
		switch one := detail.(type) {
		case *errdetails.ErrorInfo:
			reason = one.GetReason()
		case *errdetails.BadRequest:
			field = one.GetFieldViolations()[0].GetField()
		}
	}
	isRight := status.Code(err) == codes.InvalidArgument && reason == "INVALID_FIELD" && field == "options.width"
	return reason + " " + field, expect(nil, isRight)
}

func (c *client) taskDeadline(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	_, err := c.generate(ctx, &pb.ImageOptions{Width: 1024, Height: 1024, Steps: 50})
	return status.Code(err).String(), expect(nil, status.Code(err) == codes.DeadlineExceeded)
}

func expect(err error, isRight bool) error {
	if err == nil && !isRight {
		err = fmt.Errorf("not as expected")
	}
	return err
}

func main() {
	connection, err := grpc.Dial(os.Args[1], grpc.WithInsecure())
	if err != nil {
		panic(err)
	}
	c := &client{images: pb.NewImageServiceClient(connection), health: health.NewHealthClient(connection)}
	fmt.Printf("versions %s, grpc %s\n", runtime.Version(), grpc.Version)
	for _, task := range []struct {
		name string
		run  func(context.Context) (string, error)
	}{
		{"health", c.taskHealth}, {"capabilities", c.taskCapabilities}, {"generate", c.taskGenerate},
		{"edit", c.taskEdit}, {"large", c.taskLarge}, {"png", c.taskPNG},
		{"cancel", c.taskCancel}, {"bad_field", c.taskBadField}, {"deadline", c.taskDeadline},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		said, err := task.run(ctx)
		cancel()
		if err != nil {
			fmt.Printf("%s FAILED %s: %v\n", task.name, said, err)
		} else {
			fmt.Printf("%s ok %s\n", task.name, said)
		}
	}
}

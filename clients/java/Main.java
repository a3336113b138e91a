import com.google.protobuf.ByteString;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthCheckResponse;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.protobuf.StatusProto;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.TimeUnit;
import klein.v1.Accepted;
import klein.v1.Completed;
import klein.v1.EditRequest;
import klein.v1.GenerateRequest;
import klein.v1.GetCapabilitiesRequest;
import klein.v1.GetCapabilitiesResponse;
import klein.v1.ImageEvent;
import klein.v1.ImageFormat;
import klein.v1.ImageHeader;
import klein.v1.ImageOptions;
import klein.v1.ImageServiceGrpc;
import klein.v1.OutputOptions;
import klein.v1.Preview;
import klein.v1.PreviewOptions;
import klein.v1.Reference;
import klein.v1.Size;

/** Nine tasks against a klein server, one line each: Main HOST:PORT */
public final class Main {
    /** What a task saw, and whether that is right. */
    record Said(Object words, boolean isRight) {}

    /** All that one stream brought. */
    static final class Drawing {
        Accepted accepted;
        final List<Preview> previews = new ArrayList<>();
        ImageHeader header;
        ByteString image = ByteString.EMPTY;
        Completed completed;
    }

    private final ManagedChannel channel;
    private ByteString made = ByteString.EMPTY; // the image that Edit gets as its reference

    private Main(String target) {
        channel = ManagedChannelBuilder.forTarget(target).usePlaintext().build();
    }

    private ImageServiceGrpc.ImageServiceBlockingStub images(long milliseconds) {
        return ImageServiceGrpc.newBlockingStub(channel).withDeadlineAfter(milliseconds, TimeUnit.MILLISECONDS);
    }

    private ImageServiceGrpc.ImageServiceBlockingStub images() {
        return images(120_000);
    }

    private static ImageOptions.Builder sized(int width, int height, int steps) {
        return ImageOptions.newBuilder().setWidth(width).setHeight(height).setSteps(steps);
    }

    private static GenerateRequest request(ImageOptions.Builder options) {
        return GenerateRequest.newBuilder().setPrompt("a large red circle").setOptions(options).build();
    }

    /** Takes a stream to its end, calls onPreview after each preview, and checks order, length and hash. */
    private static Drawing read(Iterator<ImageEvent> events, Runnable onPreview) throws Exception {
        Drawing got = new Drawing();
        for (int sequence = 0; events.hasNext(); sequence++) {
            ImageEvent event = events.next();
            expect(event.getSequence() == sequence, "event " + sequence + " came as number " + event.getSequence());
            switch (event.getEventCase()) {
                case ACCEPTED -> got.accepted = event.getAccepted();
                case PREVIEW -> {
                    got.previews.add(event.getPreview());
                    onPreview.run();
                }
                case IMAGE_HEADER -> got.header = event.getImageHeader();
                case IMAGE_CHUNK -> got.image = got.image.concat(event.getImageChunk().getData());
                case COMPLETED -> got.completed = event.getCompleted();
                default -> {}
            }
        }
        byte[] hash = MessageDigest.getInstance("SHA-256").digest(got.image.toByteArray());
        expect(got.image.size() == got.header.getSizeBytes(), "the image does not have the header's length");
        expect(ByteString.copyFrom(hash).equals(got.header.getSha256()), "the image does not have the header's hash");
        return got;
    }

    private static void expect(boolean isRight, String otherwise) {
        if (!isRight) {
            throw new IllegalStateException(otherwise);
        }
    }

    private Drawing draw(ImageOptions.Builder options) throws Exception {
        return read(images().generate(request(options)), () -> {});
    }

    private static StatusRuntimeException failure(Callable<Drawing> work) throws Exception {
        try {
            work.call();
        } catch (StatusRuntimeException error) {
            return error;
        }
        throw new IllegalStateException("the image came");
    }

    private Said health() {
        HealthCheckResponse answer = HealthGrpc.newBlockingStub(channel)
                .withDeadlineAfter(2, TimeUnit.MINUTES)
                .check(HealthCheckRequest.getDefaultInstance());
        return new Said(answer.getStatus(), answer.getStatus() == HealthCheckResponse.ServingStatus.SERVING);
    }

    private Said capabilities() {
        GetCapabilitiesResponse answer = images().getCapabilities(GetCapabilitiesRequest.getDefaultInstance());
        return new Said(answer.getModel(), !answer.getModel().isEmpty() && answer.getChunkBytes() <= 1 << 20);
    }

    private Said generate() throws Exception {
        long seed = Long.parseUnsignedLong("18446744073709551615"); // uint64 is a signed long here
        OutputOptions.Builder output = OutputOptions.newBuilder().setFormat(ImageFormat.IMAGE_FORMAT_WEBP);
        Drawing got = draw(sized(128, 128, 4).setSeed(seed).setOutput(output));
        made = got.image;
        int told = got.previews.size() + got.completed.getPreviewsSkipped();
        ByteString jpeg = ByteString.copyFrom(new byte[] {(byte) 0xff, (byte) 0xd8});
        boolean isJpeg = got.previews.get(0).getData().startsWith(jpeg);
        return new Said(
                got.previews.size() + " previews", told == 4 && isJpeg && got.accepted.getSeed() == seed);
    }

    private Said edit() throws Exception {
        EditRequest request = EditRequest.newBuilder()
                .setPrompt("make it green")
                .addReferences(Reference.newBuilder().setImage(made))
                .setOptions(ImageOptions.newBuilder().setSteps(2))
                .build();
        Size size = read(images().edit(request), () -> {}).accepted.getReferenceSizes(0);
        return new Said("of " + size.getWidth() + "×" + size.getHeight(), size.getWidth() == 128);
    }

    private Said large() throws Exception {
        OutputOptions.Builder output = OutputOptions.newBuilder().setFormat(ImageFormat.IMAGE_FORMAT_RAW_RGBA);
        PreviewOptions.Builder preview = PreviewOptions.newBuilder().setDisabled(true);
        Drawing got = draw(sized(1040, 1024, 1).setOutput(output).setPreview(preview));
        return new Said(got.image.size() + " bytes", got.image.size() == 1040 * 1024 * 4);
    }

    private Said png() throws Exception {
        Drawing got = draw(sized(96, 64, 1));
        byte[] signature = {(byte) 0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
        boolean isPng = got.image.startsWith(ByteString.copyFrom(signature));
        var size = got.image.asReadOnlyByteBuffer();
        return new Said(got.header.getMimeType(), isPng && size.getInt(16) == 96 && size.getInt(20) == 64);
    }

    private Said cancel() throws Exception {
        Context.CancellableContext context = Context.current().withCancellation();
        StatusRuntimeException error = failure(() -> context.call(
                () -> read(images().generate(request(sized(256, 256, 50))), () -> context.cancel(null))));
        return new Said(error.getStatus().getCode(), error.getStatus().getCode() == Status.Code.CANCELLED);
    }

    private Said badField() throws Exception {
        StatusRuntimeException error = failure(() -> draw(sized(100, 128, 0)));
        String reason = "";
        String field = "";
        for (var detail : StatusProto.fromThrowable(error).getDetailsList()) {
            if (detail.is(ErrorInfo.class)) {
                reason = detail.unpack(ErrorInfo.class).getReason();
            } else if (detail.is(BadRequest.class)) {
                field = detail.unpack(BadRequest.class).getFieldViolations(0).getField();
            }
        }
        boolean isInvalid = error.getStatus().getCode() == Status.Code.INVALID_ARGUMENT;
        return new Said(
                reason + " " + field,
                isInvalid && reason.equals("INVALID_FIELD") && field.equals("options.width"));
    }

    private Said deadline() throws Exception {
        StatusRuntimeException error =
                failure(() -> read(images(500).generate(request(sized(1024, 1024, 50))), () -> {}));
        return new Said(error.getStatus().getCode(), error.getStatus().getCode() == Status.Code.DEADLINE_EXCEEDED);
    }

    /** Runs every task; a failed one is a line too. */
    public static void main(String[] arguments) {
        Main client = new Main(arguments[0]);
        String grpc = ManagedChannel.class.getPackage().getImplementationVersion();
        System.out.println("versions java " + Runtime.version().feature() + ", grpc " + grpc);
        Map<String, Callable<Said>> tasks = new LinkedHashMap<>();
        tasks.put("health", client::health);
        tasks.put("capabilities", client::capabilities);
        tasks.put("generate", client::generate);
        tasks.put("edit", client::edit);
        tasks.put("large", client::large);
        tasks.put("png", client::png);
        tasks.put("cancel", client::cancel);
        tasks.put("bad_field", client::badField);
        tasks.put("deadline", client::deadline);
        tasks.forEach((name, task) -> {
            try {
                Said said = task.call();
                System.out.println(name + (said.isRight() ? " ok " : " FAILED not as expected: ") + said.words());
            } catch (Exception error) {
                System.out.println(name + " FAILED " + error);
            }
        });
        client.channel.shutdownNow();
    }
}

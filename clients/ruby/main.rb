# Nine tasks against a klein server, one line each: main.rb HOST:PORT
require "digest"
require "google/protobuf/well_known_types" # Any#unpack
require "google/rpc/error_details_pb"
require "grpc"
require "grpc/errors"
require "grpc/google_rpc_status_utils"
require "grpc/health/v1/health_services_pb"
require "klein/v1/image_services_pb"

include Klein::V1

# All that one stream brought.
Drawing = Struct.new(:accepted, :previews, :header, :image, :completed)

class Client
  TASKS = %i[health capabilities generate edit large png cancel bad_field deadline].freeze

  def initialize(target)
    @images = ImageService::Stub.new(target, :this_channel_is_insecure)
    @health = Grpc::Health::V1::Health::Stub.new(target, :this_channel_is_insecure)
    @made = "" # the image that Edit gets as its reference
  end

  # Each task says what it saw, and whether that is right.

  def health
    answer = @health.check(Grpc::Health::V1::HealthCheckRequest.new, deadline: within(120))
    [answer.status, answer.status == :SERVING]
  end

  def capabilities
    answer = @images.get_capabilities(GetCapabilitiesRequest.new, deadline: within(120))
    [answer.model, answer.model != "" && answer.chunk_bytes <= 1 << 20]
  end

  def generate
    seed = 2**64 - 1
    output = OutputOptions.new(format: :IMAGE_FORMAT_WEBP)
    got = draw(ImageOptions.new(width: 128, height: 128, steps: 4, seed: seed, output: output))
    @made = got.image
    told = got.previews.size + got.completed.previews_skipped
    is_jpeg = got.previews[0].data.start_with?("\xFF\xD8".b)
    ["#{got.previews.size} previews", told == 4 && is_jpeg && got.accepted.seed == seed]
  end

  def edit
    references = [Reference.new(image: @made)]
    request = EditRequest.new(prompt: "make it green", references: references, options: ImageOptions.new(steps: 2))
    size = read(@images.edit(request, deadline: within(120))).accepted.reference_sizes[0]
    ["of #{size.width}×#{size.height}", size.width == 128]
  end

  def large
    output = OutputOptions.new(format: :IMAGE_FORMAT_RAW_RGBA)
    preview = PreviewOptions.new(disabled: true)
    got = draw(ImageOptions.new(width: 1040, height: 1024, steps: 1, output: output, preview: preview))
    ["#{got.image.bytesize} bytes", got.image.bytesize == 1040 * 1024 * 4]
  end

  def png
    got = draw(ImageOptions.new(width: 96, height: 64, steps: 1))
    is_png = got.image.start_with?("\x89PNG\r\n\x1A\n".b)
    [got.header.mime_type, is_png && got.image[16, 8].unpack("N2") == [96, 64]]
  end

  def cancel
    request = GenerateRequest.new(prompt: "a blue square", options: ImageOptions.new(width: 256, height: 256, steps: 50))
    call = @images.generate(request, deadline: within(120), return_op: true)
    error = failure { read(call.execute) { call.cancel } }
    [error.class, error.is_a?(GRPC::Cancelled)]
  end

  def bad_field
    error = failure { draw(ImageOptions.new(width: 100, height: 128)) }
    details = GRPC::GoogleRpcStatusUtils.extract_google_rpc_status(error.to_status).details
    reason = unpack(details, Google::Rpc::ErrorInfo).reason
    field = unpack(details, Google::Rpc::BadRequest).field_violations[0].field
    is_right = error.is_a?(GRPC::InvalidArgument) && reason == "INVALID_FIELD" && field == "options.width"
    ["#{reason} #{field}", is_right]
  end

  def deadline
    error = failure { draw(ImageOptions.new(width: 1024, height: 1024, steps: 50), within(0.5)) }
    [error.class, error.is_a?(GRPC::DeadlineExceeded)]
  end

  private

  def within(seconds)
    Time.now + seconds
  end

  def draw(options, deadline = within(120))
    read(@images.generate(GenerateRequest.new(prompt: "a large red circle", options: options), deadline: deadline))
  end

  # Takes a stream to its end, yields after each preview, and checks order, length and hash.
  def read(events)
    got = Drawing.new(nil, [], nil, "".b, nil)
    events.each_with_index do |event, sequence|
      raise "event #{sequence} came as number #{event.sequence}" if event.sequence != sequence

      case event.event
      when :accepted then got.accepted = event.accepted
      when :preview
        got.previews << event.preview
        yield if block_given?
      when :image_header then got.header = event.image_header
      when :image_chunk then got.image << event.image_chunk.data
      when :completed then got.completed = event.completed
      end
    end
    is_whole = got.image.bytesize == got.header.size_bytes && Digest::SHA256.digest(got.image) == got.header.sha256
    is_whole ? got : raise("#{got.image.bytesize} bytes do not have the header's length and hash")
  end

  def failure
    yield
    raise "the image came"
  rescue GRPC::BadStatus => error
    error
  end

  def unpack(details, type)
    details.find { |detail| detail.is(type) }.unpack(type)
  end
end

$stdout.sync = true
client = Client.new(ARGV[0])
puts "versions ruby #{RUBY_VERSION}, grpc #{GRPC::VERSION}"
Client::TASKS.each do |name|
  said, is_right = client.public_send(name)
  puts "#{name} #{is_right ? "ok" : "FAILED not as expected:"} #{said}"
rescue StandardError => error
  puts "#{name} FAILED #{error.class}: #{error.message.lines.first}"
end
